"""A save that is killed, fails or loses power at each step leaves the old state or the new one."""

import errno
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import MAX_LINE, StorageError
from tests.faults.disk import FailingDisk, Killed, Operation, PowerCut, acknowledged
from tests.faults.session import NEW, OLD, before, check, session

HERE = Path(__file__).parents[2]
WATCHED = "openat,write,fsync,rename,mkdir,unlink,unlinkat,rmdir"
ERRORS = {  # what each system call is made to return
    "openat": ["ENOSPC"],
    "write": ["ENOSPC", "EIO", "EDQUOT"],
    "fsync": ["EIO", "ENOSPC"],
    "rename": ["EIO"],
    "mkdir": ["ENOSPC"],
}


@pytest.fixture
def checkpoints() -> Iterator[Path]:
    """The folder before the session; in memory where possible, as it is copied a thousand times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        before(Path(folder) / "checkpoints")
        yield Path(folder) / "checkpoints"


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def recover(folder: Path) -> None:
    """What the next start does: it leaves nothing behind, and the save that failed succeeds."""
    storage.sweep(folder)
    assert names(folder) <= {OLD, NEW, "latest", "notes"}
    session(folder, lambda what: None)
    check(folder, ["committed", "latest"])
    assert names(folder) == {NEW, "latest", "notes"}


# ---- in process: needs nothing but Python


def record(folder: Path) -> list[Operation]:
    """The operations of an undisturbed session, with ("ack", what) between them."""
    disk = FailingDisk()
    with disk.watch():
        session(folder, lambda what: disk.operations.append(("ack", what)))
    return disk.operations


def points(folder: Path) -> Iterator[tuple[int, str, int | None]]:
    """Every operation to disturb, its kind, with the errors that it can return; None kills."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    kinds = [operation[0] for operation in record(copy) if operation[0] != "ack"]
    assert len(kinds) > 25
    for at, kind in enumerate(kinds):
        yield at, kind, None
        yield at, kind, errno.EIO
        if kind in ("create", "write", "fsync", "mkdir"):
            yield at, kind, errno.ENOSPC


def test_old_or_new_whatever_operation_fails_or_is_the_last(checkpoints: Path) -> None:
    swept = 0
    for swept, (at, kind, error) in enumerate(points(checkpoints), start=1):  # noqa: B007
        folder = checkpoints.with_name(f"at-{at}-{error}")
        shutil.copytree(checkpoints, folder)
        acknowledged: list[str] = []
        disk = FailingDisk(at, error)
        with disk.watch(), pytest.raises((Killed, StorageError)) as caught:
            session(folder, acknowledged.append)
        check(folder, acknowledged)
        if error is not None and not acknowledged:
            assert names(folder) == {OLD, "latest", "notes"}, "a failed save leaves nothing"
        if error is not None and kind not in ("unlink", "rmdir"):
            assert names(folder) <= {OLD, NEW, "latest", "notes"}, "nor does what comes after it"
        if error == errno.ENOSPC:
            assert re.search(r"disk full: .* [\d,]+ are free", str(caught.value))
        if error is not None:
            assert len(str(caught.value)) < MAX_LINE
        recover(folder)
        shutil.rmtree(folder)
    assert swept >= 70


def lost_by_power_cut(
    checkpoints: Path,
    operations: list[Operation],
    draws: int,
    seed: int = 0,
    in_order: bool = False,
) -> str | None:
    """What is lost if the power goes after one of `operations`; None if nothing.

    Tries random states of the disk.
    """
    draw = random.Random(seed)
    for end in range(len(operations) + 1):
        disk = PowerCut(checkpoints)
        disk.replay([operation for operation in operations[:end] if operation[0] != "ack"])
        for _ in range(draws):
            folder = checkpoints.with_name("after")
            disk.put(folder, draw, in_order)
            try:
                check(folder, acknowledged(operations, end, in_order))
            except AssertionError as error:
                return f"after {end} operations: {error}"
            finally:
                shutil.rmtree(folder)
    return None


def session_record(checkpoints: Path) -> list[Operation]:
    """The record of a session on a copy, as if it had run on `checkpoints` itself."""
    copy = checkpoints.with_name("copy")
    shutil.copytree(checkpoints, copy)
    old, new = str(copy), str(checkpoints)
    return [
        tuple(part.replace(old, new) if isinstance(part, str) else part for part in operation)
        for operation in record(copy)
    ]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_power_cut_takes_nothing_that_was_acknowledged(checkpoints: Path, in_order: bool) -> None:
    operations = session_record(checkpoints)
    assert lost_by_power_cut(checkpoints, operations, draws=20, in_order=in_order) is None


def test_a_commit_without_an_fsync_behind_it_is_lost_in_order_too(checkpoints: Path) -> None:
    operations = session_record(checkpoints)
    committed = next(at for at, operation in enumerate(operations) if operation[0] == "ack")
    assert operations[committed - 1][0] == "fsync"
    del operations[committed - 1]
    assert lost_by_power_cut(checkpoints, operations, 20, in_order=True)


def test_no_fsync_is_superfluous(checkpoints: Path) -> None:
    """The test of the test above: with any one fsync left out, it finds a loss."""
    operations = session_record(checkpoints)
    fsyncs = [at for at, operation in enumerate(operations) if operation[0] == "fsync"]
    assert len(fsyncs) == 9
    quiet = [
        at
        for at in fsyncs
        if lost_by_power_cut(checkpoints, operations[:at] + operations[at + 1 :], 20) is None
    ]
    # begin() alone makes a name durable early, for the other machines of a shared folder; the last
    # fsync covers it.
    assert quiet == fsyncs[:1]


def test_a_rename_before_the_manifest_is_caught(checkpoints: Path) -> None:
    operations = session_record(checkpoints)
    manifest = next(
        at for at, operation in enumerate(operations) if operation[1].endswith("manifest.json")
    )
    rename = next(at for at, operation in enumerate(operations) if operation[0] == "rename")
    old, new = operations[rename][1:]
    late = [
        (kind, path.replace(old, new), *more) for kind, path, *more in operations[manifest:rename]
    ]
    swapped = [*operations[:manifest], operations[rename], *late, *operations[rename + 1 :]]
    assert lost_by_power_cut(checkpoints, swapped, draws=20)


# ---- real processes under strace


def traced(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        "strace",
        "-f",
        "-qq",
        *options,
        sys.executable,
        "-S",
        str(HERE / "faults" / "session.py"),
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def system_calls(checkpoints: Path) -> list[tuple[str, int]]:
    """(name, how many of that name so far) of each call of a session that changes the disk."""
    copy, log = checkpoints.with_name("copy"), checkpoints.with_name("strace.log")
    shutil.copytree(checkpoints, copy)
    try:
        result = traced(copy, "-e", f"trace={WATCHED}", "-o", str(log))
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if not log.exists() or "mkdir" not in log.read_text():
        pytest.skip(f"strace may not be used here: {result.stderr[:100]}")
    assert result.returncode == 0, result.stderr
    seen: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        name = line.split(maxsplit=1)[1].split("(")[0]
        seen[name] = seen.get(name, 0) + 1
        ours = str(copy) in line or name in ("fsync", "unlinkat", "rmdir")
        if name == "write":
            ours = "write(1," not in line  # not what the script says
        if ours and (name != "openat" or "O_CREAT" in line):
            calls.append((name, seen[name]))
    return calls


def test_old_or_new_under_sigkill_and_errors_at_each_system_call(checkpoints: Path) -> None:
    calls = system_calls(checkpoints)
    faults = [(name, n, "signal=SIGKILL") for name, n in calls]
    faults += [(name, n, f"error={error}") for name, n in calls for error in ERRORS.get(name, [])]
    assert len(faults) >= 57

    def fire(fault: tuple[str, int, str]) -> None:
        name, n, what = fault
        folder = checkpoints.with_name(f"{name}-{n}-{what[-6:]}")
        shutil.copytree(checkpoints, folder)
        result = traced(
            folder, "-e", f"trace={name}", "-e", f"inject={name}:{what}:when={n}", "-o", "/dev/null"
        )
        acknowledged = result.stdout.split()
        check(folder, acknowledged)
        if what == "signal=SIGKILL":
            assert result.returncode in (-9, 137)
        else:
            assert result.returncode == 74, (fault, result)
            assert result.stderr.count("\n") == 1
            assert len(result.stderr) <= MAX_LINE
            assert acknowledged or names(folder) == {OLD, "latest", "notes"}
        recover(folder)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fire, faults))
    print(f"{len(faults)} faults at {len(calls)} system calls")
