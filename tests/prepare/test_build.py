"""From a corpus to a folder: exact figures, the same bytes however it is run, and what a finished
folder is worth.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist.data import DataFolder, verify_folder
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    MissingInputError,
    NanogptError,
    UsageError,
)
from prepare.corpora import find
from prepare.sources.local import find_sources
from tests.conftest import CLONE, SHARED, Run, build, command, hashes, write_jsonl

SHAKESPEARE = SHARED / "data" / "tinyshakespeare.txt"
needs_shakespeare = pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the text is not here")


@needs_shakespeare
@pytest.mark.parametrize(
    ("corpus", "train", "val", "ids"),
    [("shakespeare", 301_966, 36_059, 50_257), ("shakespeare_char", 1_003_854, 111_540, 65)],
)
def test_shakespeare_is_nanogpts(
    corpus: str,
    train: int,
    val: int,
    ids: int,
    tmp_path: Path,
) -> None:
    manifest = build(corpus, tmp_path / "out", [SHAKESPEARE])
    data = DataFolder.open(tmp_path / "out")
    assert (data.split("train").tokens, data.split("val").tokens, data.split("val").n_vocab) == (
        train,
        val,
        ids,
    )
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
    data = DataFolder.open(
        build_there("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.4)
    )
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
    assert total + manifest.counts.empty == len(names) == len(manifest.sources[0].files)
    assert manifest.splits["train"].bytes > 4_000_000


def test_workers_folder_locale_and_time_zone_do_not_show(
    source: Path,
    prepared: Path,
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(CLONE / "nanogpt"), "prepare", "text"]
    options = [
        "--source",
        str(source),
        "--tokenizer",
        "bpe:300",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "two"),
    ]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
    }
    subprocess.run(command + options, env=environment, check=True, capture_output=True)
    assert hashes(tmp_path / "two") == hashes(prepared)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_any_moment_the_next_run_goes_on(
    ranks: int,
    source: Path,
    prepared: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "bpe:300",
        "--out",
        "out",
        "--workers",
        "2",
        "--json",
    ]
    out = tmp_path / "out"
    for wait_for in (
        "lock",
        "plan.json",
        "tokenizer.json",
        "000000.json",
        "000002.json",
        "000003.json",
    ):
        process = subprocess.Popen(
            command(*line, ranks=ranks if ranks > 1 else 0),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and wait_for not in file_names(out):
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not in_session(process.pid), "workers outlived their parent"
        if not (out / "manifest.json").exists():
            with pytest.raises(BadDataError, match="run the same nanogpt prepare again"):
                DataFolder.open(out)
    nanogpt(*line)
    assert hashes(out) == hashes(prepared)


def file_names(folder: Path) -> set[str]:
    """Names of all files below `folder`, in which files and folders may vanish meanwhile."""
    return {name for _, _, names in os.walk(folder) for name in names}


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
    before = hashes(prepared)
    build("text", prepared, [source], tokenizer="bpe:300")
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


def test_a_damaged_folder_is_noticed_and_says_how_to_go_on(
    source: Path,
    prepared: Path,
    tmp_path: Path,
) -> None:
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


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        ("text", {}, UsageError, "needs --source"),
        ("text", {"sources": ["missing.txt"]}, MissingInputError, "missing.txt"),
        ("text", {"sources": ["empty"]}, MissingInputError, "nothing to read"),
        ("text", {"sources": ["a.csv"]}, UsageError, "cannot read"),
        ("text", {"sources": ["bad.txt"]}, BadDataError, "bad.txt:2:3: byte 0xff"),
        (
            "text",
            {"sources": ["a.txt"], "tokenizer": "gpt3"},
            MissingInputError,
            "no tokenizer gpt3",
        ),
        ("text", {"sources": ["a.txt"], "tokenizer": "bpe:100"}, UsageError, "bpe:257"),
        ("text", {"sources": ["a.txt"], "val_fraction": 1.0}, UsageError, "--val-fraction"),
        (
            "text",
            {"sources": ["a.jsonl"], "split_by": "characters"},
            UsageError,
            "--split-by documents",
        ),
        (
            "text",
            {"sources": ["a.jsonl"], "val_fraction": 1e-9},
            BadDataError,
            "raise --val-fraction",
        ),
        (
            "text",
            {"sources": ["a.jsonl"], "val_fraction": 1 - 1e-9},
            BadDataError,
            "lower --val-fraction",
        ),
        ("text", {"sources": ["a.jsonl"], "column": "body"}, BadDataError, "--column"),
        ("text", {"sources": ["nothing.txt"]}, BadDataError, "there is no text"),
        ("shakespear", {}, UsageError, "did you mean shakespeare"),
        ("python-stdlib", {"sources": ["a.txt"]}, UsageError, "takes no --source"),
        ("shakespeare", {"sources": ["a.txt", "a.txt"]}, UsageError, "one file"),
    ],
)
def test_nothing_is_written_where_nothing_can_be_read(
    corpus: str,
    options: dict[str, Any],
    error: type[NanogptError],
    message: str,
    tmp_path: Path,
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
