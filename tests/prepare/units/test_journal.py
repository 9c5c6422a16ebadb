"""The output folder while it is being filled: whose it is, and what an unfinished run leaves
behind.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError, CannotCreateError, StorageError
from prepare.units.journal import WORK, WorkFolder, claimed
from tests.conftest import Run, build, hashes, write_jsonl


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
    holder = rf"in use by process {os.getpid()} on .*--out$"
    with claimed(tmp_path / "out", fresh=False), pytest.raises(CannotCreateError, match=holder):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    assert not (tmp_path / "out").exists()
    build("text", tmp_path / "out", [source], tokenizer="byte")
    assert WORK not in os.listdir(tmp_path / "out")


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(BadDataError):
        build("text", tmp_path / "deep" / "er" / "out", [tmp_path / "bad.txt"], tokenizer="byte")
    assert not (tmp_path / "deep").exists()


def unfinished(folder: Path) -> Path:
    """A source whose third unit cannot be encoded, and the folder that holds the first two."""
    texts = [f"document {i} " + "some text " * 100 for i in range(3000)]
    source = write_jsonl(folder / "a.jsonl", texts)
    with source.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    with pytest.raises(
        BadDataError, match=r"a\.jsonl:3001:13: byte 0xe9 is not UTF-8; .* --errors replace or skip"
    ):
        build("text", folder / "out", [source], tokenizer="byte", workers=1)
    assert {path.name for path in WorkFolder(folder / "out").units.glob("*.json")} == {
        "000000.json",
        "000001.json",
    }
    return source


def test_what_is_done_stays_done_when_bad_text_is_met(tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    told: list[str] = []
    manifest = build(
        "text", tmp_path / "out", [source], tokenizer="byte", errors="skip", note=told.append
    )
    assert told == ["going on: 2 of 3 units were done before"]
    assert manifest.counts.skipped == 1
    build("text", tmp_path / "at-once", [source], tokenizer="byte", errors="skip")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")


def test_an_unfinished_folder_is_gone_on_with_or_given_up_on_purpose(tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    with pytest.raises(
        CannotCreateError,
        match="unfinished prepare with tokenizer byte, not gpt2; finish it, add --fresh",
    ):
        build("text", tmp_path / "out", [source], tokenizer="gpt2")
    source.write_bytes(source.read_bytes().replace(b"\xe9", b"e"))
    with pytest.raises(CannotCreateError, match="other source files"):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    build("text", tmp_path / "out", [source], tokenizer="byte", fresh=True)
    assert WORK not in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("kind", ["train", "val", "documents", "json"])
@pytest.mark.parametrize("damage", ["gone", "cut off", "flipped"])
def test_damaged_leftovers_are_done_again(kind: str, damage: str, tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    path = tmp_path / "out" / WORK / "units" / f"000001.{kind}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            data[: len(data) // 2]
            if damage == "cut off"
            else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        )
    options = {"tokenizer": "byte", "errors": "skip"}
    if damage == "flipped" and kind in ("train", "val"):  # noticed only as the file is read
        with pytest.raises(StorageError, match="damaged on the disk; run the same command again"):
            build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")


def test_shards_that_are_there_are_kept_if_they_are_good(tmp_path: Path) -> None:
    """Small shards: some are whole before the third unit fails. A damaged one, and those behind it,
    are made again.
    """
    texts = [f"document {i} " + "some text " * 100 for i in range(3000)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    good = source.read_bytes()
    options = {"tokenizer": "byte", "shard_tokens": 300_000, "val_fraction": 0.2, "errors": "skip"}
    bad_line = b'{"text": "caf\xe9"}\n'
    source.write_bytes(good + bad_line)
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    for damaged in (None, 0, 3):
        out = tmp_path / f"out-{damaged}"
        with pytest.raises(BadDataError):
            build("text", out, [source], **{**options, "errors": "strict"}, workers=1)  # type: ignore[arg-type]
        kept = sorted(out.glob("*_train_*.bin"))
        assert len(kept) >= 5
        assert not (out / WORK / "units" / "000000.train").exists(), "its ids are in shards"
        if damaged is not None:
            data = kept[damaged].read_bytes()
            kept[damaged].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        before = [path.stat().st_mtime_ns for path in kept]
        build("text", out, [source], **options)  # type: ignore[arg-type]
        same = [path.stat().st_mtime_ns == time for path, time in zip(kept, before, strict=True)]
        assert same == [damaged is None or index < damaged for index in range(len(kept))]
        assert hashes(out) == hashes(tmp_path / "at-once")
        DataFolder.open(out)


def test_units_of_another_plan_are_no_units_of_this_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = unfinished(tmp_path)
    options = {"tokenizer": "byte", "errors": "skip", "val_fraction": 0.3}
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    (tmp_path / "out" / WORK / "plan.json").write_text("{}")
    build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")
    second = tmp_path / "second"
    second.mkdir()
    source = unfinished(second)
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (5000, 5000))
    with pytest.raises(CannotCreateError, match="another version of nanogpt, or other units"):
        build("text", second / "out", [source], tokenizer="byte", errors="skip")


def test_another_corpus_in_a_finished_folder_is_refused_without_a_network(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])
    build("text", tmp_path / "out", [source], tokenizer="byte")
    with pytest.raises(CannotCreateError, match="corpus text, not shakespeare"):
        build("shakespeare", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, nanogpt: Run) -> None:
    write_jsonl(tmp_path / "a.jsonl", [f"document {i} " + "some text " * 200 for i in range(5000)])
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        line = ["prepare", "text", "--source", "a.jsonl", "--tokenizer", "byte", "--workers", 2]
        error = nanogpt(*line, "--out", "small/out", code=74).stderr
        assert re.fullmatch(
            r"nanogpt: error: disk full: \S+ needs at least [\d,]+ bytes, [\d,]+ are free; .*\n",
            error,
        )
        assert not [path for path in small.rglob("*") if path.name.startswith(".tmp-")]
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        assert "going on: " in nanogpt(*line, "--out", "small/out").stderr
        nanogpt(*line, "--out", "elsewhere")
        assert hashes(small / "out") == hashes(tmp_path / "elsewhere")
    finally:
        subprocess.run(["umount", str(small)], check=True)
