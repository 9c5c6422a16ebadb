"""Find and end the processes of a run through Linux's /proc.

On other systems the finders find nothing.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# SIGUSR1: a batch file of launch.slurm
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def children(parent: int) -> set[int]:
    """Process ids of the direct children of `parent`."""
    return {pid for pid in _all() if _parent(pid) == parent}


def marked(name: str, value: str) -> set[int]:
    """Ids of the living processes that were started with `name`=`value` in their environment.

    Unlike the family tree this also finds those whose parent has died, in whatever session they
    are.
    """
    entry = os.fsencode(f"{name}={value}")
    return {pid for pid in _all() if entry in _read(pid, "environ").split(b"\0")}


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Sends a signal to each of `pids` that still exists."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def run_and_pass_on(
    command: list[str],
    environment: Mapping[str, str],
    stdout: int | None = None,
    noticed: Callable[[], None] = lambda: None,
) -> int:
    """Run `command`, pass on signals that ask to stop, and return its exit code.

    128 + N where signal N ended it. stdout: a descriptor for what it prints; None: ours. noticed is
    called for each signal.

    Ctrl-C reaches it twice, from the terminal and from us: it has to take the second for the first.
    Main thread only.
    """
    child = subprocess.Popen(command, env=environment, stdout=stdout, preexec_fn=end_with_parent())

    def pass_on(number: int, frame: FrameType | None) -> None:
        noticed()
        send(signal.Signals(number), [child.pid])

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def end_with_parent() -> Callable[[], None] | None:
    """A preexec_fn that sends SIGTERM to the new process when its parent dies.

    Also when the parent is killed with SIGKILL; None if not on Linux.

    It and its children ignore SIGUSR1: some Slurms send it to every process of a step, and we pass
    it on as SIGTERM.

    The parent is the thread that starts it, and must stay: use it from the main thread.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _parent(pid: int) -> int | None:
    # "12 (name, which may hold blanks and brackets) S 1 …": the state and the parent follow the
    # last bracket.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else None


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
