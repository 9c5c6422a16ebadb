"""The run lock, with real processes: the second is refused, and a killed holder is forgotten."""

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanogpt_dist.errors import MAX_LINE, CannotCreateError, StorageError
from nanogpt_dist.storage import RunLock, is_held, runlock
from nanogpt_dist.storage.runlock import lock_holder
from tests.faults.disk import FailingDisk

ROOT = Path(__file__).parents[3]
HOLD = """
import os, sys, time
from pathlib import Path
from nanogpt_dist.storage import RunLock
with RunLock(Path(sys.argv[1])):
    if sys.argv[2] == "alone" or os.fork() == 0:
        print("held", flush=True)
    os.close(1)
    time.sleep(10)
"""


@contextmanager
def holder(run: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `run`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(run), how],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(CannotCreateError) as error, RunLock(tmp_path):
            pass
        assert f"in use by process {first.pid} on {socket.gethostname()} since 20" in str(
            error.value
        )
        assert len(str(error.value)) < MAX_LINE


@pytest.mark.parametrize("how", ["alone", "with a worker"])
def test_it_is_free_at_once_after_sigkill(tmp_path: Path, how: str) -> None:
    with holder(tmp_path, how) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with RunLock(tmp_path):
            pass


def test_the_file_stays_and_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new" / "run")
    for _ in range(2):
        with lock:
            assert f'"pid": {os.getpid()}' in lock.path.read_text()
            with (
                pytest.raises(CannotCreateError, match=f"process {os.getpid()} "),
                RunLock(lock.path.parent),
            ):
                pass
    assert lock.path.exists()


def test_a_note_with_odd_characters_cannot_paint_the_terminal(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / "run.lock").write_text(
            '{"host": "\\u001b[31m", "pid": 1, "started": "' + "x" * 500 + '"}'
        )
        with (
            pytest.raises(CannotCreateError, match=r"in use by process 1 on \?\?31m since x{40};"),
            RunLock(tmp_path),
        ):
            pass
        (tmp_path / "run.lock").write_text("")
        with pytest.raises(CannotCreateError, match="in use by another process"), RunLock(tmp_path):
            pass


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("?")
    (tmp_path / "run.lock").symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(CannotCreateError, match=r"cannot lock .*--out-dir"), RunLock(folder):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_whether_it_is_held_can_be_asked(tmp_path: Path) -> None:
    assert is_held(tmp_path / "run.lock") is False
    with holder(tmp_path):
        assert is_held(tmp_path / "run.lock") is True
    assert is_held(tmp_path / "run.lock") is False
    (tmp_path / "link").symlink_to("link")
    assert is_held(tmp_path / "link") is True  # it cannot be asked


def test_a_refused_lock_leaves_nothing_open(tmp_path: Path) -> None:
    """Else the run that asks again and again runs out of descriptors."""
    with holder(tmp_path):
        before = os.listdir("/dev/fd")
        with pytest.raises(CannotCreateError), RunLock(tmp_path):
            pass
        assert os.listdir("/dev/fd") == before


def test_messages_name_the_folder_as_it_was_called(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock:
        assert lock.path == tmp_path / "run" / "run.lock"
        told = (
            ({}, "/run is in use by process"),
            ({"called": Path("out/mine")}, "^out/mine is in"),
        )
        for given, words in told:
            with (
                pytest.raises(CannotCreateError, match=f"{words}.*--out-dir"),
                RunLock(tmp_path / "run", **given),
            ):
                pass
    flag = "name a folder with --out that"
    (tmp_path / "file").write_text("?")
    with (
        pytest.raises(CannotCreateError, match=f"cannot lock .*/file: File exists; {flag}"),
        RunLock(tmp_path / "file", flag="--out"),
    ):
        pass


def test_an_old_note_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("x" * 2000)
    with RunLock(tmp_path):
        note = json.loads((tmp_path / "run.lock").read_text())
        assert note["pid"] == os.getpid()
        assert json.loads(lock_holder(tmp_path / "run.lock") or "") == note
    assert lock_holder(tmp_path / "run.lock") is None
    assert lock_holder(tmp_path / "nowhere") is None


def test_a_full_disk_takes_the_note_and_not_the_lock(tmp_path: Path) -> None:
    disk = FailingDisk(1, errno.ENOSPC)
    with disk.watch(), RunLock(tmp_path):
        assert disk.failed
        assert disk.failed[0] == "pwrite"
        assert is_held(tmp_path / "run.lock")


@pytest.mark.parametrize("mask", [0o022, 0o000])
def test_others_may_look_at_it_as_the_umask_allows(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with RunLock(tmp_path) as lock:
            assert stat.S_IMODE(lock.path.stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(before)


def test_one_that_is_only_looked_at_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.lock").touch()
    waited: list[float] = []
    looking = (tmp_path / "run.lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == runlock.TRIES - 1:
            looking.close()

    monkeypatch.setattr(time, "sleep", wait)
    with RunLock(tmp_path):
        assert is_held(tmp_path / "run.lock")
    assert len(waited) == 4


def test_a_holder_that_removes_the_file_leaves_a_lock_to_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/dev/fd")
    first = RunLock(tmp_path)
    first.__enter__()

    def leave(seconds: float) -> None:
        first.path.unlink()
        first.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", leave)
    with RunLock(tmp_path):
        assert is_held(tmp_path / "run.lock")
    assert os.listdir("/dev/fd") == before


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_knows_no_locks_is_not_called_in_use(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS, and Lustre without -o flock, answer so."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        CannotCreateError, match=r"cannot lock .*: its file system has no flock; .* --out-dir$"
    ):
        RunLock(tmp_path).__enter__()


def test_a_folder_that_moves_is_noticed_and_its_new_place_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunLock(run) as lock:
        lock.refuse_moved()
        run.rename(tmp_path / "new")
        for _ in range(2):
            with pytest.raises(StorageError, match=r"run was renamed .*nanogpt train .*/new$"):
                lock.refuse_moved()
            run.mkdir(exist_ok=True)  # another one of that name
        run.rmdir()
        (tmp_path / "new" / "run.lock").unlink()
        (tmp_path / "new").rmdir()
        with pytest.raises(StorageError, match="run was deleted or moved away"):
            lock.refuse_moved()
    with RunLock(tmp_path / "a" / "b") as lock:
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "a").write_text("?")
        with pytest.raises(StorageError, match="b was renamed"):
            lock.refuse_moved()
