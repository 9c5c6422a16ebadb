"""The run lock, with real processes: the second is refused, and a killed holder is forgotten."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanogpt_dist.errors import MAX_LINE, CannotCreateError
from nanogpt_dist.storage import RunLock, is_held

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
