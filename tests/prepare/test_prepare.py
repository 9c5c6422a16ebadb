"""Preparing data: exact figures, the same bytes however it is run, and nothing written where nothing can be read."""

import fcntl
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
import zstandard
from pyarrow import parquet
from typer.testing import CliRunner

from cli.prepare import prepare
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    HubUnavailableError,
    MissingInputError,
    NanogptError,
    StorageError,
    UsageError,
)
from nanogpt_dist.shards import DataFolder, verify_folder
from nanogpt_dist.storage import sha256_file
from prepare import encode
from prepare.build import build
from prepare.corpora import CORPORA, find
from prepare.documents import read_documents
from prepare.encode import Batch, Part, batches, encode_batches
from prepare.folder import LOCK, claimed
from prepare.sources import find_sources, on_disk, records

ROOT = Path(__file__).parents[2]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
needs_shakespeare = pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the text is not here")

app = typer.Typer()
app.command()(prepare)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def write_jsonl(path: Path, documents: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """3,000 documents, 5 MB: enough that workers are started."""
    words = ["the ", "café ", "x = 1\n", "<|endoftext|>", "東京", "  ", "12345 ", "don't "]
    rng = np.random.default_rng(5)
    return ["".join(words[i] for i in rng.integers(0, len(words), 300)) for _ in range(3000)]


@pytest.fixture(scope="module")
def source(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", documents)


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "one"
    build("text", out, [source], tokenizer="bpe:300", workers=1)
    return out


# ---- figures


@needs_shakespeare
@pytest.mark.parametrize(
    ("corpus", "train", "val", "ids"),
    [("shakespeare", 301_966, 36_059, 50_257), ("shakespeare_char", 1_003_854, 111_540, 65)],
)
def test_shakespeare_is_nanogpts(corpus: str, train: int, val: int, ids: int, tmp_path: Path) -> None:
    manifest = build(corpus, tmp_path / "out", [SHAKESPEARE])
    data = DataFolder.open(tmp_path / "out")
    assert (data.split("train").tokens, data.split("val").tokens, data.split("val").n_vocab) == (train, val, ids)
    text = SHAKESPEARE.read_text(encoding="utf-8")
    whole = np.concatenate([data.split("train").read(0, train), data.split("val").read(0, val)])
    assert data.tokenizer.decode(whole) == text
    assert sum(split.bytes for split in manifest.splits.values()) == 1_115_394
    assert data.tokenizer.eot_id not in whole


def test_documents_come_back(prepared: Path, documents: list[str]) -> None:
    data = DataFolder.open(prepared)
    found = []
    for split in data.splits.values():
        ids, ends = split.read(0, split.tokens), split.document_ends()
        assert np.array_equal(np.flatnonzero(ids == data.tokenizer.eot_id) + 1, ends)
        for start, end in zip([0, *ends], ends, strict=False):
            found.append(data.tokenizer.decode(ids[start : end - 1]))
        assert split.bytes == data.tokenizer.byte_lengths()[ids].sum()
    assert sorted(found) == sorted(documents)
    assert 200 < data.split("val").documents < 400  # a tenth of 3,000
    assert verify_folder(prepared) == []


def test_equal_documents_go_to_one_split(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i % 10}" for i in range(1000)])
    data = DataFolder.open(build_there("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.4))
    assert [split.documents % 100 for split in data.splits.values()] == [0, 0]


def build_there(corpus: str, out: Path, sources: list[Path], **options: Any) -> Path:
    build(corpus, out, sources, **options)
    return out


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    sources = find_sources(find("python-stdlib"), [])
    names = [file.name for file in sources.files]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    manifest = build("python-stdlib", tmp_path / "out", tokenizer="byte", workers=1)
    total = sum(split.documents for split in manifest.splits.values())
    assert total + manifest.counts.empty == len(names) == len(manifest.sources.files)
    assert manifest.splits["train"].bytes > 4_000_000


# ---- the output is a function of text, tokenizer and options


def test_workers_folder_locale_and_time_zone_do_not_show(source: Path, prepared: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.prepare.test_prepare import app; app(sys.argv[1:])",
        "text",
    ]
    options = ["--source", str(source), "--tokenizer", "bpe:300", "--workers", "2", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run(command + options, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert hashes(tmp_path / "two") == hashes(prepared)


def test_a_killed_run_is_made_good_by_the_next(source: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import sys; from pathlib import Path; from prepare.build import build; "
    code += f"build('text', Path({str(out)!r}), [Path({str(source)!r})], tokenizer='bpe:300', workers=2)"
    for wait_for in (LOCK, "tokenizer.json", ".tmp-text_train"):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
        while process.poll() is None and not (out.is_dir() and any(wait_for in name for name in os.listdir(out))):
            time.sleep(0.005)
        process.kill()
        process.wait()
        with pytest.raises(BadDataError, match="run the same nanogpt prepare again"):
            DataFolder.open(out)
        deadline = time.monotonic() + 10
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not in_session(process.pid), "workers outlived their parent"
    build("text", out, [source], tokenizer="bpe:300", workers=1)
    assert hashes(out) == hashes(prepared)


def in_session(session: int) -> list[str]:
    """Processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_finished_folder_is_left_alone(source: Path, prepared: Path) -> None:
    before, started = hashes(prepared), time.monotonic()
    build("text", prepared, [source], tokenizer="bpe:300")
    assert time.monotonic() - started < 1
    for options, message in (
        ({"tokenizer": "bpe:301"}, "tokenizer bpe:300, not bpe:301"),
        ({"tokenizer": "byte"}, "tokenizer bpe:300, not byte"),
        ({"tokenizer": "bpe:300", "val_fraction": 0.2}, "--val-fraction 0.1, not 0.2"),
        ({"tokenizer": "bpe:300", "seed": 1}, "--seed 2357, not 1"),
        ({"tokenizer": "bpe:300", "column": "body"}, "--column text, not body"),
    ):
        with pytest.raises(CannotCreateError, match=rf"{message}; choose another --out"):
            build("text", prepared, [source], **options)  # type: ignore[arg-type]
    with pytest.raises(CannotCreateError, match="corpus text, not python-stdlib"):
        build("python-stdlib", prepared)
    assert hashes(prepared) == before


def test_changed_sources_are_noticed(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    build("text", tmp_path / "out", [source], tokenizer="byte")
    source.write_text("some test " * 100)
    with pytest.raises(CannotCreateError, match="other source files"):
        build("text", tmp_path / "out", [source], tokenizer="byte")


# ---- the output folder


def test_other_peoples_folders_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    for name in ("notes.md", "tokenizer.json", "text_train_000000.bin"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(CannotCreateError, match=f"holds {name}"):
            build("text", folder, [source], tokenizer="byte")
        assert os.listdir(folder) == [name]
    with pytest.raises(CannotCreateError, match="not a folder"):
        build("text", source, [source], tokenizer="byte")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    holder = rf"by process {os.getpid()} on "
    with claimed(tmp_path / "out"), pytest.raises(CannotCreateError, match=holder):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    assert not (tmp_path / "out").exists()
    build("text", tmp_path / "out", [source], tokenizer="byte")
    assert LOCK not in os.listdir(tmp_path / "out")


def test_a_lock_that_nobody_holds_is_taken(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    with claimed(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        ("text", {}, UsageError, "needs --source"),
        ("text", {"sources": ["missing.txt"]}, MissingInputError, "missing.txt"),
        ("text", {"sources": ["empty"]}, MissingInputError, "nothing to read"),
        ("text", {"sources": ["a.csv"]}, UsageError, "cannot read"),
        ("text", {"sources": ["bad.txt"]}, BadDataError, "bad.txt:2:3: byte 0xff"),
        ("text", {"sources": ["a.txt"], "tokenizer": "gpt3"}, MissingInputError, "no tokenizer gpt3"),
        ("text", {"sources": ["a.txt"], "tokenizer": "bpe:100"}, UsageError, "bpe:257"),
        ("text", {"sources": ["a.txt"], "val_fraction": 1.0}, UsageError, "--val-fraction"),
        ("text", {"sources": ["a.jsonl"], "split": "characters"}, UsageError, "--split documents"),
        ("text", {"sources": ["a.jsonl"], "val_fraction": 1e-9}, BadDataError, "raise --val-fraction"),
        ("text", {"sources": ["a.jsonl"], "val_fraction": 1 - 1e-9}, BadDataError, "lower --val-fraction"),
        ("text", {"sources": ["a.jsonl"], "column": "body"}, BadDataError, "--column"),
        ("text", {"sources": ["nothing.txt"]}, BadDataError, "there is no text"),
        ("shakespear", {}, UsageError, "did you mean shakespeare"),
        ("python-stdlib", {"sources": ["a.txt"]}, UsageError, "takes no --source"),
        ("shakespeare", {"sources": ["a.txt", "a.txt"]}, UsageError, "one file"),
    ],
)
def test_nothing_is_written_where_nothing_can_be_read(
    corpus: str, options: dict[str, Any], error: type[NanogptError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"good\nbad\xff")
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "a.txt").write_text("some text " * 100)
    write_jsonl(tmp_path / "a.jsonl", ["one", "two", "three"])
    before = sorted(tmp_path.rglob("*"))
    sources = [tmp_path / name for name in options.pop("sources", [])]
    with pytest.raises(error, match=message) as caught:
        build(corpus, tmp_path / "out", sources, **{"tokenizer": "byte", **options})
    assert sorted(tmp_path.rglob("*")) == before
    assert len(str(caught.value)) < 200


# ---- documents


def texts(path: Path, column: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, column)]


def test_compressed_lines_read_as_plain_ones(source: Path, documents: list[str], tmp_path: Path) -> None:
    plain = source.read_bytes()
    assert texts(source) == documents
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(plain[:70_001]) + compress(b"") + compress(plain[70_001:]))
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert texts(tmp_path / name) == documents
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 5):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(BadDataError, match=f"{name} is damaged or cut off"):
                texts(tmp_path / name)


def test_rows_of_parquet(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": range(3000), "body": documents}), path, row_group_size=700)
    assert texts(path, "body") == documents
    for column in ("text", "id"):
        with pytest.raises(BadDataError, match=rf"no text column {column}; it has: id, body"):
            texts(path, column)
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(BadDataError, match="row 2 of column text is null"):
        texts(path)
    invalid = pa.array([b"ok", b"ab\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": invalid}), path)
    with pytest.raises(BadDataError, match=r"a.parquet:2:2: .* not UTF-8"):
        texts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadDataError, match="no parquet file, or damaged"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a.jsonl:2: not JSON \(column 2"),
        (b"[" * 100_000, r":2: not JSON"),
        (b'{"text": "caf\xe9"}', r":2:13: byte 0xe9 is not UTF-8"),
        (b'{"text": "a\\ud800"}', r":2: character 1 is U\+D800"),
        (b'{"body": "x"}', r":2: no text in field text; it has: body; choose one with --column"),
        (b'{"text": null}', r":2: no text in field text"),
        (b'["text"]', r":2: no text in field text; it has: list"),
    ],
)
def test_bad_lines_are_named(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(BadDataError, match=message):
        texts(tmp_path / "a.jsonl")


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    words = pa.array(["one", "two", "one"])
    parquet.write_table(pa.table({"text": words.dictionary_encode()}), path)
    assert texts(path) == ["one", "two", "one"]
    parquet.write_table(pa.Table.from_arrays([words, words], ["text", "text"]), path)
    with pytest.raises(BadDataError, match="no text column text"):
        texts(path)
    parquet.write_table(pa.table({"text": pa.array(["some text"] * 1000)}), path)
    data = bytearray(path.read_bytes())
    data[20:40] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(BadDataError, match="no parquet file, or damaged"):
        texts(path)


def test_a_byte_order_mark_counts_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xff")
    with pytest.raises(BadDataError, match=r"a\.txt:1:4: byte 0xff"):
        texts(tmp_path / "a.txt")


def test_what_is_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\xef\xbb\xbf")
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo\0\ufeff"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\ud83d\\ude42\\u2028"}\r\n\n{"text": ""}')
    assert texts(tmp_path / "a.jsonl") == ["a🙂\u2028", ""]


def test_empty_documents_are_counted_and_left_out(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["", "x", " ", "", "\n", "y", "z", "<|endoftext|>"])
    manifest = build("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.5)
    assert manifest.counts.empty == 2
    assert sum(split.documents for split in manifest.splits.values()) == 6
    assert sum(split.tokens for split in manifest.splits.values()) == 5 + 13 + 6


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
    for name in ("a.TXT", "b.csv", "c.json"):
        (tmp_path / name).write_text("some text " * 100)
    told: list[str] = []
    build("text", tmp_path / "out", [tmp_path], tokenizer="byte", note=told.append)
    assert told == ["2 files are not read, their endings are not known: b.csv, c.json"]


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(MissingInputError, match="not a file"):
        find_sources(find("text"), [tmp_path])


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])

    def change(what: str, done: int, total: int) -> None:
        source.write_text(source.read_text() + "\n")

    with pytest.raises(BadDataError, match="changed while it was read"):
        build("text", tmp_path / "out", [source], tokenizer="byte", progress=change)
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_is_noticed_and_says_how_to_go_on(source: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    shard = next(out.glob("*_train_*.bin"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadDataError, match="rm -r it, then run the same command"):
        build("text", out, [source], tokenizer="bpe:300")
    (out / "manifest.json").write_text('{"name": "somebody\'s"}')
    with pytest.raises(CannotCreateError, match="choose another --out"):
        build("text", out, [source], tokenizer="bpe:300")


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(BadDataError):
        build("text", tmp_path / "deep" / "er" / "out", [tmp_path / "bad.txt"], tokenizer="byte")
    assert not (tmp_path / "deep").exists()


def test_one_text_may_be_cut_in_two(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("some text " * 100)
    with pytest.raises(BadDataError, match="for a single text type --split characters"):
        build("text", tmp_path / "out", [tmp_path / "a.md"], tokenizer="byte")
    manifest = build("text", tmp_path / "out", [tmp_path / "a.md"], tokenizer="byte", split="characters")
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (900, 100)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_cleans_up_and_says_so(source: Path, prepared: Path, sign: signal.Signals, tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "nanogpt"), "prepare", "text", "--source", str(source), "--workers", "2"]
    line += ["--tokenizer", "bpe:300", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out" / "tokenizer.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, sign)  # as a terminal does it: the workers get it too
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (75, ""), stderr
    assert stderr == "nanogpt: stopped, nothing is left behind; the same command starts over\n"
    assert not (tmp_path / "out").exists()


# ---- encoding in parallel


def test_batches_depend_on_the_text_only(tmp_path: Path) -> None:
    tokenizer = tokenizers.byte()
    tokenizer.save(tmp_path / "t.json")
    parts = [(Part("val" if i % 7 == 0 else "train", f"document {i} " * 5000, True), i) for i in range(150)]
    one, two = (list(encode_batches(batches(parts), tmp_path / "t.json", True, n)) for n in (1, 2))
    assert len(one) > 5
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes == b.read_bytes
        for x, y in zip(a.encoded, b.encoded, strict=True):
            assert x.split == y.split
            assert np.array_equal(x.ids, y.ids)
            assert np.array_equal(x.ends, y.ends)


def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    tokenizers.byte().save(tmp_path / "t.json")
    given = [Batch([Part("train", f"text {i}", True)], read_bytes=i) for i in range(60)]
    results = []
    for result in encode_batches(given, tmp_path / "t.json", True, 2):
        results.append(result)
        if len(results) in (5, 30):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    decoded = [tokenizers.byte().decode(r.encoded[0].ids) for r in results]
    assert decoded == [f"text {i}<|endoftext|>" for i in range(60)]


def test_workers_that_keep_dying_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("no tokenizer")  # a worker fails to start
    with pytest.raises(StorageError, match=f"died {encode.ATTEMPTS} times"):
        list(encode_batches([Batch([Part("train", "x", True)])], tmp_path / "t.json", True, 2))


def test_errors_in_workers_arrive(tmp_path: Path) -> None:
    tokenizers.char("ab").save(tmp_path / "t.json")
    with pytest.raises(BadDataError, match=r"'c' \(U\+0063\)"):
        list(encode_batches([Batch([Part("train", "abc", True)])], tmp_path / "t.json", False, 2))


# ---- the download


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path[1:])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"text" if status == 200 else b"")

    def log_message(self, *arguments: object) -> None:
        pass


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
    assert [(r.name, r.bytes, r.sha256) for r in records(good, sources)] == [("input.txt", 4, good.sha256)]
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
        with pytest.raises(HubUnavailableError, match=r"by hand and give --source FILE$"), on_disk(bad, sources):
            pass
    server.shutdown()
    server.server_close()


def test_the_real_address_fits_the_line() -> None:
    from prepare.sources import _download

    with pytest.raises(HubUnavailableError) as caught:
        _download(replace(CORPORA["shakespeare"], address="http://127.0.0.1:1" + "/" * 71))
    assert len(str(caught.value)) < 200


# ---- the command


def test_json_is_one_object(source: Path, prepared: Path) -> None:
    arguments = ["text", "--source", str(source), "--tokenizer", "bpe:300", "--out", str(prepared), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
    data = DataFolder.open(prepared)
    assert figures["out"] == str(prepared)
    assert figures["dataset_id"] == data.dataset_id
    assert (figures["train_tokens"], figures["val_tokens"]) == (data.split("train").tokens, data.split("val").tokens)
    assert (figures["documents"], figures["vocab_size"], figures["reused"]) == (3000, 300, True)
    assert figures["seconds"] >= 0


def test_the_summary_ends_with_what_to_type_next(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be " * 50)
    out = str(tmp_path / "out")
    arguments = ["text", "--source", str(tmp_path / "a.txt"), "--tokenizer", "char", "--out", out]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "855 tokens" in result.stdout
    assert result.stdout.endswith(f"Next: nanogpt train --dataset {out}\n")
    assert DataFolder.open(out).tokenizer.n_vocab == 7


def test_the_summary_names_the_presets_for_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("to be or not to be " * 50)
    with pytest.raises(UsageError, match="not the known text"):
        CliRunner().invoke(app, ["shakespeare_char", "--source", "input.txt"], catch_exceptions=False)
    known = replace(CORPORA["shakespeare_char"], sha256=sha256_file(Path("input.txt")))
    monkeypatch.setitem(CORPORA, "shakespeare_char", known)
    result = CliRunner().invoke(app, ["shakespeare_char", "--source", "input.txt"], catch_exceptions=False)
    last = "Next: nanogpt train shakespeare-char   (without a GPU: nanogpt train shakespeare-char-cpu)\n"
    assert result.stdout.endswith(last)


def test_list_names_every_corpus() -> None:
    result = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(CORPORA)
    with pytest.raises(UsageError, match="which corpus"):
        CliRunner().invoke(app, [], catch_exceptions=False)
