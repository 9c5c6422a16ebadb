"""The output folder: one run at a time, nobody else's files, nothing left behind."""

import fcntl
import os
from pathlib import Path

import pytest

from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
)
from prepare.build import build
from prepare.folder import LOCK, claimed


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


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(BadDataError):
        build("text", tmp_path / "deep" / "er" / "out", [tmp_path / "bad.txt"], tokenizer="byte")
    assert not (tmp_path / "deep").exists()
