"""A disk that fails in the midst of a save, is full, read-only, or slow: training goes on."""

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import tensors
from nanogpt_dist.errors import MAX_LINE, StorageError
from nanogpt_dist.training.saver import Saver
from tests.conftest import fork_server
from tests.faults.disk import FailingDisk
from tests.faults.saves import Layout, left_over, what_is_wrong
from tests.nanogpt_dist.small import go, tiny

COMMIT, SAVE = Saver._commit, checkpoint.save
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def test_any_operation_of_a_save_may_fail_and_the_next_save_succeeds(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Any of Python's: those of safetensors are test_failing_saves.py's."""
    whole, reached, raised = FailingDisk(), [], []

    def commit(self: Saver, mine: Any, about: Any) -> None:
        step, at = mine.state.step, (mine.state.step - 5) // 2
        # the fourth save tells the operations: it deletes an old checkpoint, as all later ones do
        disk = whole if step == 4 else FailingDisk(at if step % 2 else None, ERRORS[at % 3])
        try:
            with disk.watch():
                COMMIT(self, mine, about)
        except StorageError:
            raised.append(step)
            raise
        finally:
            saved = step not in raised
            assert not what_is_wrong(self.run.checkpoints, storage.step_name(step), saved), step
            if disk.failed is not None:
                reached.append(step)
            if disk.failed is None or disk.failed[0] not in ("unlink", "rmdir"):
                assert not left_over(self.run.checkpoints), disk.failed

    monkeypatch.setattr(Saver, "_commit", commit)
    config = tiny(corpus, tmp_path, max_iters=150, eval_interval=10**4, save_interval=1)
    assert go(config.model_copy(update={"async_save": False})).step == 150
    assert len(reached) >= len(whole.operations) > 50, "each of them has failed once"
    assert len(raised) > 20
    assert capsys.readouterr().err.count("training goes on") == len(raised)


@pytest.fixture
def disk(tmp_path: Path, trouble: "Trouble") -> Iterator[Path]:
    """A small disk of its own, where the trouble needs one; skips where nobody may mount it."""
    place = tmp_path / "disk"
    place.mkdir()
    if trouble is limited:
        yield place
        return
    line = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        if subprocess.run(line, capture_output=True).returncode:
            pytest.skip("this machine does not let us mount a disk")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(left))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@contextmanager
def limited(disk: Path) -> Iterator[None]:
    """As by `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


Trouble = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (full, "No space left on device|disk full: "),
        (read_only, "Read-only file system"),
        (limited, "File too large"),
    ],
)
def test_in_trouble_with_its_disk_a_run_goes_on_twice_and_ends_the_third_time(
    trouble: Trouble,
    told: str,
    disk: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a disk that fills between the look at its room and the writing, or a quota, which shows then
    monkeypatch.setattr(storage, "require_room", lambda path, needed: None)

    def save(world: Any, checkpoints: Path, mine: Any, *rest: Any) -> Path:
        if mine.state.step not in (3, 4, 6, 7, 8):
            return SAVE(world, checkpoints, mine, *rest)
        before = sorted(path.name for path in checkpoints.iterdir())
        with trouble(disk):
            try:
                return SAVE(world, checkpoints, mine, *rest)
            finally:
                assert sorted(path.name for path in checkpoints.iterdir()) == before

    monkeypatch.setattr(checkpoint, "save", save)
    run = tmp_path / "run"
    run.mkdir()
    (disk / "checkpoints").mkdir()
    (run / "checkpoints").symlink_to(disk / "checkpoints")
    config = tiny(corpus, run, max_iters=20, save_interval=1, eval_interval=20)
    with pytest.raises(StorageError, match=told) as third:
        go(config)
    err = capsys.readouterr().err
    for step, good in ((3, 2), (4, 2), (6, 5), (7, 5)):
        line = f"not saved at step {step}, training goes on; the last good one is step-{good:08d}: "
        assert line in err
    assert len(str(third.value)) <= MAX_LINE
    status = json.loads((run / "status.json").read_text())
    assert (status["code"], status["checkpoint"]) == (74, "step-00000005")
    assert not what_is_wrong(run / "checkpoints", "step-00000005", True)
    monkeypatch.setattr(checkpoint, "save", SAVE)
    assert go(config).step == 20


@pytest.mark.parametrize("looks", [True, False])
def test_a_disk_that_answers_nothing_any_more_fails_a_save_as_any_error_does(
    looks: bool,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even how much is free on it, before anything is written or behind an error."""

    def dead(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def save(world: Any, checkpoints: Path, mine: Any, *rest: Any) -> Path:
        with monkeypatch.context() as patch:
            if mine.state.step in (3, 4):
                patch.setattr(os, "statvfs", dead)
                if not looks:
                    patch.setattr(storage, "require_room", lambda path, needed: None)
                    patch.setattr(tensors, "save_file", dead)
            return SAVE(world, checkpoints, mine, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    go(tiny(corpus, tmp_path, max_iters=6, save_interval=1, eval_interval=6))
    assert capsys.readouterr().err.count("the last good one is step-00000002: ") == 2
    assert not what_is_wrong(tmp_path / "checkpoints", "step-00000006", True)


SLOW = """
import sys, time
from nanogpt_dist.checkpoint import state
from nanogpt_dist.__main__ import main

write = state.write

def slowly(path, parts):
    if path.name.startswith("model-00002"):
        time.sleep(6)
    write(path, parts)

state.write = slowly
main()
"""


@pytest.mark.thorough
@pytest.mark.parametrize("beside", [False, True])
def test_a_save_slower_than_the_timeout_fails_nothing(
    beside: bool,
    corpus: Path,
    tmp_path: Path,
) -> None:
    line = Layout("fsdp", beside).train(corpus, tmp_path / "run", "--max-iters", 2)
    line += ["--timeout-s", "4"]
    program = f"import sys; sys.argv = {['nanogpt', *line]!r}\n{SLOW}"
    done = fork_server().run("-c", program, folder=tmp_path, ranks=2)
    assert "not saved" not in done.stderr
    steps = storage.list_steps(tmp_path / "run" / "checkpoints")
    assert [storage.step_of(path.name) for path in steps] == [2, 1]
