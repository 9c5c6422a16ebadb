"""Which files are read, in which order; what is left out is told; the download."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import (
    BadDataError,
    HubUnavailableError,
    MissingInputError,
    UsageError,
)
from nanogpt_dist.storage.eval_results import save_results
from prepare.corpora import CORPORA, find
from prepare.readers.tables import rows
from prepare.readers.unsupported import how_to_read
from prepare.sources.local import find_sources, on_disk, records
from tests.conftest import build, write_jsonl
from tests.nanogpt_dist.small import go, tiny


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/é.jsonl", "B.txt", "a.csv", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    (tmp_path / "link").symlink_to(tmp_path / "a")
    sources = find_sources(find("text"), [tmp_path / "a", tmp_path / "b.txt"])
    assert [file.name for file in sources.files] == ["z.md", "é.jsonl", "b.txt"]
    sources = find_sources(find("text"), [tmp_path])
    assert [file.name for file in sources.files] == ["B.txt", "a/z.md", "a/é.jsonl", "b.txt"]
    assert sources.ignored == ("a.csv", "link")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.csv", "c.csv.gz"):
        (tmp_path / name).write_text("some text " * 100)
    told: list[str] = []
    build("text", tmp_path / "out", [tmp_path], tokenizer="byte", note=told.append)
    assert told == ["not read, for an unknown ending or as a link to a folder (2): b.csv, c.csv.gz"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "a.csv",
            'a table; type: python -c "import pandas; '
            "pandas.read_csv('FILE').to_parquet('FILE.parquet')\"",
        ),
        ("a.tsv", "pandas.read_table('FILE')"),
        ("a.zip", "an archive; type: unzip FILE -d FOLDER and give FOLDER"),
        ("a.TAR", "type: tar -xf FILE -C FOLDER"),
        ("a.tar.xz", "type: tar -xf FILE -C FOLDER"),
        ("a.tgz", "type: tar -xf FILE -C FOLDER"),
        ("a.txt.bz2", "type: bzcat FILE | nanogpt prepare text --source -"),
        ("a.jsonl.xz", "type: xzcat FILE | nanogpt prepare text --source -.jsonl"),
        ("a.parquet.zst", "unpack it: zstdcat FILE > NEWFILE"),
        ("a.csv.gz", "unpack it: zcat FILE > NEWFILE"),
        ("a.html", "pandoc FILE -t plain -o FILE.txt"),
        ("a.pdf", "pdftotext FILE FILE.txt"),
        ("train.bin", "nanogpt import-shards --help"),
        ("LICENSE", "to read it as one text type: nanogpt prepare text --source - < FILE"),
        ("a.py", "nanogpt prepare text --source - < FILE"),
    ],
)
def test_what_to_type_for_a_file_that_is_not_read(name: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("something")
    for given, kind in ((tmp_path / name, UsageError), (tmp_path, MissingInputError)):
        with pytest.raises(kind, match=re.escape(f"{name}: ") + ".*" + re.escape(advice)) as caught:
            find_sources(find("text"), [given])
        assert len(str(caught.value)) <= 200


def test_pandas_makes_the_parquet_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text('id,text\n1,"one\n""two"""\n')
    line = how_to_read("FILE.csv").removeprefix('a table; type: python -c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True, timeout=60)
    told: list[str] = []
    (file,) = find_sources(find("text"), [tmp_path / "FILE.parquet"]).files
    assert file.path is not None
    told += rows(file.path, "parquet", "text", 0, 1)  # type: ignore[arg-type]
    assert told == ['one\n"two"']


def test_what_is_only_about_the_data_is_not_read(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [f"row {number}" for number in range(40)]})
    DatasetDict(train=rows, test=rows.select(range(3))).save_to_disk(tmp_path / "saved")
    for name in ("README.md", "LICENSE.txt", "train/cache-0123456789abcdef.arrow"):
        (tmp_path / "saved" / name).write_text("about the data")
    told: list[str] = []
    manifest = build(
        "text", tmp_path / "out", [tmp_path / "saved"], tokenizer="byte", note=told.append
    )
    assert [file.name for file in manifest.sources[0].files] == [
        "test/data-00000-of-00001.arrow",
        "train/data-00000-of-00001.arrow",
    ]
    assert told == [
        "not read, as about the data (8): LICENSE.txt, README.md, … rain/dataset_info.json, "
        "train/state.json; name those as --source that are text"
    ]


def test_a_readme_among_texts_is_read_and_told(tmp_path: Path) -> None:
    for name in ("README.md", "a.md", "licence fees.md"):
        (tmp_path / name).write_text("some text")
    sources = find_sources(find("text"), [tmp_path])
    assert len(sources.files) == 3
    assert sources.notes == (
        "read as documents like the others (1): README.md; without them: --source "
        f"'{tmp_path}/PATTERN'",
    )
    (tmp_path / "licence fees.md").unlink()
    (tmp_path / "a.md").rename(tmp_path / "a.ndjson")
    (tmp_path / "dataset_infos.json").write_text("{}")
    sources = find_sources(find("text"), [tmp_path])
    assert [file.name for file in sources.files] == ["a.ndjson"]
    (tmp_path / "a.ndjson").unlink()
    sources = find_sources(find("text"), [tmp_path])
    assert [file.name for file in sources.files] == ["README.md", "dataset_infos.json"]


def test_a_pointer_of_git_lfs_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
    )
    with pytest.raises(
        BadDataError, match=r"a.txt is a pointer of Git LFS, .* in its clone type: git lfs pull"
    ):
        find_sources(find("text"), [tmp_path])


def test_a_source_that_is_missing_may_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"essays does not exist; give another path$"):
        find_sources(find("text"), [tmp_path / "essays"])


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(MissingInputError, match="not a file"):
        find_sources(find("text"), [tmp_path])


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])

    def change(what: str, done: int, total: int, tokens: int) -> None:
        source.write_text(source.read_text() + "\n")

    with pytest.raises(BadDataError, match="changed while it was read"):
        build("text", tmp_path / "out", [source], tokenizer="byte", progress=change)
    assert not (tmp_path / "out").exists()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path[1:])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"text" if status == 200 else b"")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.thorough
def test_downloads() -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    good = replace(
        CORPORA["shakespeare"],
        address=f"http://127.0.0.1:{server.server_port}/200",
        bytes=4,
        sha256=hashlib.sha256(b"text").hexdigest(),
    )
    sources = find_sources(good, [])
    assert [(r.name, r.bytes, r.sha256) for r in records(good, sources)] == [
        ("input.txt", 4, good.sha256)
    ]
    with on_disk(good, sources) as there:
        path = there.files[0].path
        assert path is not None
        assert path.read_bytes() == b"text"
    assert not path.exists()
    for bad in (
        replace(good, sha256="0" * 64),
        replace(good, address=f"http://127.0.0.1:{server.server_port}/500"),
        replace(good, address="http://127.0.0.1:1/"),
        replace(good, address="http://no.such.host.invalid/"),
    ):
        with (
            pytest.raises(HubUnavailableError, match=r"by hand and give --source FILE$"),
            on_disk(bad, sources),
        ):
            pass
    server.shutdown()
    server.server_close()


def test_the_real_address_fits_the_line() -> None:
    from prepare.sources.local import _download

    with pytest.raises(HubUnavailableError) as caught:
        _download(replace(CORPORA["shakespeare"], address="http://127.0.0.1:1" + "/" * 71))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("given", [".", "link", "**/*.js*"])
def test_what_nanogpt_writes_below_a_source_is_no_source(
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if given == "link":
        (tmp_path / "link").symlink_to(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(99)])
    out = Path("data/text")
    first = build("text", out, [Path(given)], tokenizer="byte")
    assert build("text", out, [Path(given)], tokenizer="byte") == first  # finished before
    # killed: the folder is there, and unfinished
    for name in ("manifest.json", "text_val_000000.bin"):
        (out / name).unlink()
    (out / ".prepare").mkdir()
    assert build("text", out, [Path(given)], tokenizer="byte") == first
    notes: list[str] = []
    other = build("text", Path("data/other"), [Path(given)], tokenizer="byte", note=notes.append)
    assert [file.name for file in other.sources[0].files] == ["a.jsonl"]
    if given == ".":
        assert (
            "not read, as nanogpt wrote it (2): data/text/manifest.json, data/text/tokenizer.json"
            in notes
        )


def test_a_run_a_checkpoint_and_a_tokenizer_below_a_source_are_no_sources(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["text"] * 9)
    (tmp_path / "mine.json").write_bytes(tokenizers.byte().to_json())
    step = tmp_path / "out/a/checkpoints/step-00000001"
    step.mkdir(parents=True)
    for folder, names in [
        (
            step.parents[1],
            ("config.toml", "run.json", "status.json", "metrics.jsonl", "notes.jsonl"),
        ),
        (step, ("config.toml", "state.json", "manifest.json", "tokenizer.json")),
    ]:
        for name in names:
            (folder / name).write_text('{"text": "x"}')
    sources = find_sources(find("text"), [tmp_path])
    # the last is the user's
    assert [file.name for file in sources.files] == ["a.jsonl", "out/a/notes.jsonl"]
    assert "nanogpt wrote it (7)" in sources.notes[-1]


def test_nothing_that_a_run_leaves_is_a_source(corpus: Path, tmp_path: Path) -> None:
    prompts = {"sample_interval": 4, "sample_prompt": ["a"]}
    result = go(tiny(corpus, tmp_path / "out" / "a", **prompts))
    save_results(Path(result.checkpoint), {"val of a": {"val_loss": 4.0, "tokens": 9}})
    write_jsonl(tmp_path / "a.jsonl", ["text"] * 9)
    found = find_sources(find("text"), [tmp_path])
    assert [file.name for file in found.files] == ["a.jsonl"]
    made = {path.name for path in (tmp_path / "out").rglob("*.json*")}
    assert {"samples.jsonl", "events.jsonl", "step-00000008.eval.json"} <= made


@pytest.mark.parametrize("given", ["data", "data/text", "data/text/*.json"])
def test_a_source_with_nothing_but_the_data_set_is_told(given: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(99)])
    build("text", tmp_path / "data/text", [tmp_path / "a.jsonl"], tokenizer="byte")
    with pytest.raises(MissingInputError, match="own; give --source what holds text"):
        find_sources(find("text"), [tmp_path / given], tmp_path / "data/text")
    with pytest.raises(MissingInputError, match="nanogpt's own; give --source what holds text"):
        find_sources(find("text"), [tmp_path / given], tmp_path / "other")
