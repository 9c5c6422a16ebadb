"""Run torchrun, pass on requests to stop, leave no process behind, tell how it ended.

torchrun forwards SIGTERM too, but returns 1 even if every rank saved and exited 0, and is gone
before its ranks are when it is killed itself. So it runs in a session of its own, where Ctrl-C at
the terminal does not reach it, and the ranks are signalled past it: they save and exit 0, and
torchrun ends as if nothing had been.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch import processes, verdict
from launch.verdict import Verdict
from nanogpt_dist.errors import (
    OUT_OF_MEMORY,
    CannotCreateError,
    Exit,
    NanogptError,
    StoppedError,
    StorageError,
    error_of,
)

POLL_S = 0.1
# timeout(1) signals its command twice at once: to the process, then to its group
SAME_SIGNAL_S = 0.1
SECOND_SIGNAL_S = 5.0
# a process that outlives SIGKILL for so long hangs in the kernel: nothing can be done
UNKILLABLE_S = 10.0


@dataclass
class Stop:
    """What was asked of us from outside. Times are in seconds of the monotonic clock."""

    timeout_s: float
    first: float | None = None
    latest: float | None = None
    forced: bool = False
    killed: bool = False
    alone: bool = False  # no rank was left here, and the other nodes did not answer

    @property
    def requested(self) -> bool:
        return self.first is not None

    @property
    def overdue(self) -> bool:
        """The ranks were to be gone by now."""
        return self.forced or (
            self.first is not None and time.monotonic() > self.first + self.timeout_s
        )

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: Ctrl-C within 5 s of another signal forces.

        SIGTERM does not: schedulers repeat it.
        """
        now = time.monotonic()
        if self.latest is not None and number == signal.SIGINT:
            self.forced |= SAME_SIGNAL_S < now - self.latest < SECOND_SIGNAL_S
        if self.first is None:
            self.first = now
            if sys.stderr.isatty():
                os.write(
                    2, b"\nstopping once every rank has saved; Ctrl-C again within 5 s kills them\n"
                )
        self.latest = now


@dataclass(frozen=True)
class Run:
    """A torchrun to start: command line, environment, and how often it may restart ranks.

    Where there are others, on other nodes: what to do first, and how long to wait for them when no
    rank is left here.
    """

    command: list[str]
    environment: Mapping[str, str]
    shutdown_timeout_s: float = 60.0
    max_restarts: int = 0
    first: Callable[[Stop], None] = lambda stop: None
    alone_s: float | None = None
    others: str = ""


def run(what: Run) -> int:
    """Runs `what` until all its processes are gone; returns the exit code of the run.

    That is the code of the verdict that all ranks agreed on, or 0 if torchrun returned 0. SIGINT,
    SIGTERM, SIGHUP and SIGUSR1 ask the ranks to stop; after shutdown_timeout_s, or upon a second
    Ctrl-C within 5 s, they are killed. When torchrun has used up its restarts, and the run has a
    new checkpoint, it is started anew. Standard input, output and error are inherited. Must be
    called from the main thread.

    Raises: NanogptError, with the code that the failing rank gave, if the run failed; StoppedError
    if it was stopped before the ranks were up; CannotCreateError if there is no folder for
    temporary files.
    """
    stop = Stop(what.shutdown_timeout_s)
    with _listening(stop):
        what.first(stop)
        while True:
            with _private_folder() as folder:
                path = folder / "verdict.json"
                returncode = _attend(what, path, stop)
                left, newest = verdict.read(path), verdict.progress(path)
            failed = (
                returncode != 0
                and not (left and left.agreed)
                and not stop.requested
                and not stop.alone
            )
            if not failed or not what.max_restarts or newest is None:
                return conclude(returncode, left, stop, what.others)
            print(
                f"nanogpt: {what.max_restarts} restarts used up, but {newest} is new: starting "
                "again",
                file=sys.stderr,
            )


def conclude(returncode: int, left: Verdict | None, stop: Stop, others: str = "") -> int:
    """The exit code of a run, from torchrun's `returncode`, the verdict and the request to stop.

    A verdict that not all ranks agreed on loses against a torchrun that returned 0: it had
    restarted them.

    Raises: see `run`.
    """
    if left and left.agreed:
        return left.code
    if returncode == 0:
        return Exit.DONE
    if left:
        error = error_of(left.code, f"rank {left.rank}: {left.message}")
        error.quiet = left.message.startswith(OUT_OF_MEMORY)  # the rank's own line is enough
        raise error
    if stop.alone:
        raise StorageError(
            f"lost {others}, or the network to it; the same command, on all of them, resumes"
        )
    if stop.killed:
        reason = (
            "on the second Ctrl-C"
            if stop.forced
            else f"as they did not stop within {stop.timeout_s:g} s"
        )
        raise NanogptError(
            f"the ranks were killed {reason}; the same command resumes from the last checkpoint"
        )
    if stop.requested:
        raise StoppedError("stopped; the same command starts over or resumes")
    # nanogpt_dist.distributed.torchrun_agent's: the nodes' own torchrun was lost, or is none
    if returncode == Exit.IO_ERROR:
        raise StorageError(
            f"the nodes do not meet: {others or 'the first one'} has gone, or its port belongs to "
            "something else; type the same on all nodes, perhaps with another port in "
            "--rdzv-endpoint"
        )
    how = (
        f"was killed by {signal.Signals(-returncode).name}"
        if returncode < 0
        else f"returned {returncode}"
    )
    raise NanogptError(
        f"torchrun {how} and no rank said why: see the report above (exitcode -9: killed, mostly "
        "for lack of memory: --batch-size auto takes less); the same command resumes"
    )


def _attend(what: Run, mark: Path, stop: Stop) -> int:
    """Run torchrun to its end and pass on a request to stop.

    Returns its code once all its processes are gone.
    """
    asked: set[int] = set()
    last_seen: float | None = None  # when torchrun had ranks
    torchrun = subprocess.Popen(
        what.command,
        env={**what.environment, verdict.VARIABLE: str(mark)},
        start_new_session=True,
        preexec_fn=processes.end_with_parent(),
    )
    try:
        while (returncode := _wait(torchrun)) is None:
            ranks = processes.children(torchrun.pid)
            last_seen = time.monotonic() if ranks else last_seen
            if (
                last_seen
                and what.alone_s is not None
                and time.monotonic() > last_seen + what.alone_s
            ):
                stop.alone = True
            if stop.overdue or stop.alone:
                stop.killed |= stop.overdue
                os.killpg(torchrun.pid, signal.SIGKILL)
            elif stop.requested:
                # Before it has ranks, torchrun itself must go. Afterwards it may restart some: ask
                # these too.
                waiting = (ranks if last_seen else {torchrun.pid}) - asked
                processes.send(signal.SIGTERM, waiting)
                asked |= waiting
        return returncode
    finally:
        _end_rest(str(mark), stop)


def _wait(torchrun: subprocess.Popen[bytes]) -> int | None:
    try:
        return torchrun.wait(timeout=POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _end_rest(mark: str, stop: Stop) -> None:
    """End what a killed torchrun left: ranks are asked to save, and killed if too slow."""
    asked: set[int] = set()
    deadline = time.monotonic() + stop.timeout_s
    while (left := _left(mark)) and time.monotonic() < deadline + UNKILLABLE_S:
        stop.killed |= stop.overdue or time.monotonic() > deadline
        processes.send(*((signal.SIGKILL, left) if stop.killed else (signal.SIGTERM, left - asked)))
        asked |= left
        time.sleep(POLL_S)


def _left(mark: str) -> set[int]:
    """The living processes of the run.

    None were seen? Look twice: in the midst of exec a process shows no mark.
    """
    if found := processes.marked(verdict.VARIABLE, mark):
        return found
    time.sleep(POLL_S)
    return processes.marked(verdict.VARIABLE, mark)


@contextmanager
def _private_folder() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="nanogpt-", ignore_cleanup_errors=True)
    except OSError as error:
        raise CannotCreateError(
            f"no temporary folder: {error.strerror}; set TMPDIR to a folder with space"
        ) from error
    with temporary as name:
        yield Path(name)


@contextmanager
def _listening(stop: Stop) -> Iterator[None]:
    """Let `stop` hear SIGINT, SIGTERM and SIGHUP.

    One that was inherited as ignored (nohup) stays ignored.
    """
    before = {number: signal.getsignal(number) for number in processes.STOPPING}
    heard = [number for number in before if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop.on_signal)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
