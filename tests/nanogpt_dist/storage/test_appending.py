"""Files that grow by lines: never behind a link, and a pipe is not waited for."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt_dist.errors import MAX_LINE, StorageError
from nanogpt_dist.storage.appending import append_lines, open_to_append, refuse_odd
from nanogpt_dist.storage.durable import OddFileError, storage_errors
from nanogpt_dist.storage.events import EVENTS, note_event

ODD: dict[str, Callable[[Path], None]] = {
    "link": lambda path: path.symlink_to(path.with_name("mine")),
    "dangling link": lambda path: path.symlink_to(path.with_name("nothing")),
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
}


def test_lines_are_appended_behind_what_is_there(tmp_path: Path) -> None:
    append_lines(tmp_path / "file", ["one", "two"])
    append_lines(tmp_path / "file", ["three"], sync=True)
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\nthree\n"
    with (tmp_path / "file").open("ab") as file:
        file.write(b"torn")
    append_lines(tmp_path / "file", ["four"])
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\nthree\ntorn\nfour\n"
    with open_to_append(tmp_path / "file") as file:
        file.write(b"five\n")
    assert (tmp_path / "file").read_bytes().endswith(b"four\nfive\n")


def test_lines_are_made_durable_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.pread(fd, 99, 0)))
    append_lines(tmp_path / "file", ["one"])
    assert not synced
    append_lines(tmp_path / "file", ["two"], sync=True)
    assert synced == [b"one\ntwo\n"]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("# mine\n")
    path = tmp_path / ("x" * 100) / EVENTS
    path.parent.mkdir()
    (path.parent / "mine").symlink_to(tmp_path / "mine")
    ODD[kind](path)
    for use in (open_to_append, refuse_odd, lambda path: append_lines(path, ["a"])):
        with (
            pytest.raises(StorageError, match=r"events\.jsonl is a link, .*move it away") as error,
            storage_errors(path),
        ):
            use(path)
        assert len(str(error.value)) <= MAX_LINE
    note_event(path.parent, "save", 1)
    assert (tmp_path / "mine").read_text() == "# mine\n"
    assert not (path.parent / "nothing").exists()


def test_a_pipe_that_comes_between_the_look_and_the_opening(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    monkeypatch.setattr("nanogpt_dist.storage.appending.refuse_odd", lambda path: None)
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(OddFileError):
        open_to_append(tmp_path / "pipe")
    assert set(os.listdir("/dev/fd")) == before
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_to_append(tmp_path / "link")
    assert not (tmp_path / "mine").exists()
