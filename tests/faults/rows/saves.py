"""Saves that fail, are killed or are asked to stop at one of their system calls."""

import random
from pathlib import Path

from tests.faults import prepared, saves
from tests.faults.row import Missing, Row
from tests.faults.strace import CannotTraceError

FAILING = 20  # saves of one training that a try lets fail


def killed(choose: random.Random, folder: Path) -> None:
    """Kill a rank at a system call of its save: the one before is there, or the new one."""
    prepare(folder)
    layout = saves.draw_layout(choose)
    saves.kill_at(folder, folder / "data", layout, choose.getrandbits(32))
    saves.go_on(folder, folder / "data")


def stopped(choose: random.Random, folder: Path) -> None:
    """Ask a rank to stop at a system call of its save: it is finished, and the last step saved."""
    prepare(folder)
    saves.stop_at(folder, folder / "data", saves.draw_layout(choose), choose.getrandbits(32))


def failing(choose: random.Random, folder: Path) -> None:
    """Let a system call of a save fail, in one save of two: training goes on, nothing is left."""
    prepare(folder)
    layout, seed = saves.draw_layout(choose), choose.getrandbits(32)
    saves.fail_operations(folder, folder / "data", layout, seed, FAILING)


def failing_beside(choose: random.Random, folder: Path) -> None:
    """As failing(), of saves that are made beside the training."""
    prepare(folder)
    layout = saves.Layout(choose.choice(["ddp", "fsdp"]), async_save=True)
    saves.fail_operations(folder, folder / "data", layout, choose.getrandbits(32), FAILING)


def prepare(folder: Path) -> None:
    """FOLDER/data. Raises Missing where no system call can be made to fail."""
    try:
        saves.require_strace(folder)
    except CannotTraceError as error:
        raise Missing(str(error)) from None
    (folder / "data").symlink_to(prepared.data() / "data")


TESTS = ["tests/nanogpt_dist/training/test_failing_saves.py"]
ROWS = [
    Row(
        number=3,
        fault="SIGKILL of a rank at any system call of a save",
        holds="the checkpoint before is good, or the new one; the next start leaves no debris",
        goal=80,
        attempt=killed,
        limit_s=240,
        tests=TESTS,
    ),
    Row(
        number=10,
        fault="SIGTERM at any system call of a save",
        holds="the save is finished, and the last step saved, 75",
        goal=40,
        attempt=stopped,
        limit_s=240,
        tests=TESTS,
    ),
    Row(
        number=11,
        fault="any system call of a save returns ENOSPC, EDQUOT or EIO, at either rank",
        holds="all before is good, nothing is left, training goes on, the next save succeeds",
        goal=500,
        attempt=failing,
        each=FAILING,
        limit_s=240,
        tests=TESTS,
    ),
    Row(
        number=13,
        fault="EIO on an fsync, or at any system call of a commit",
        holds="no commit is called one; one line; the old state stays",
        goal=1,
        tests=["tests/nanogpt_dist/storage/test_crash_safety.py"],
    ),
    Row(
        number=47,
        fault="a save beside the training fails",
        holds="told at the next step with the last good checkpoint; training goes on",
        goal=100,
        attempt=failing_beside,
        each=FAILING,
        limit_s=240,
        tests=["tests/nanogpt_dist/training/test_async_save.py"],
    ),
]
