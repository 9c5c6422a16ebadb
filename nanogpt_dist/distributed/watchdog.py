"""Find the rank that failed: names, stacks, and a thread that watches the clock.

Each rank registers in the store of its process group. When a collective fails, each survivor leaves
a note there, and whoever leaves none is the one that was lost: killed, stopped, hanging, or behind
a cut cable. A rank that fails by itself leaves its reason. Nothing here waits for long: the store
may be gone as well.
"""

import contextlib
import faulthandler
import functools
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from nanogpt_dist.errors import (
    LostPeerError,
    NanogptError,
    StorageError,
    clipped,
    explain,
    is_lost_peer,
    one_line,
)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 50e-6, 1e-3  # of wait(); a step takes 1e-2 s at least
LOOK_S = 0.5  # between two looks for a lost rank
NOTES_S = 2.0  # within which survivors have noticed that a rank is gone, once one has
STORE_S = 3.0  # for an answer of the store
ROLL_CALL_S = 8.0  # for all of it
POLL_S = 1.0
DEAD = ("", "Z", "X")  # states of a process, as _state() tells them
STOPPED = ("T", "t")


class Watchdog:
    """What one rank knows of itself and the others. store: None in a process without a group.

    timeout_s: seconds after which wait() takes the others for lost.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: "dist.Store | None",
        timeout_s: float = math.inf,
    ) -> None:
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self._store = store
        self._members: dict[int, Any] = {}  # of the other ranks: host, place, process id
        self._step: int | None = None
        self._beat = time.monotonic()
        self._left: BaseException | None = None
        self._stacks: IO[str] | None = None
        if store is not None:
            store.set(f"member/{rank}", json.dumps([socket.gethostname(), _place(), os.getpid()]))

    def beat(self, step: int) -> None:
        """Tell that this rank is alive, after `step` steps."""
        self._step, self._beat = step, time.monotonic()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return once ready() is true, as event.query() is when the device has come to the event.

        Meanwhile signals are heard, as nowhere in a read of the device, and ranks that left or
        died are seen within seconds. Raises LostPeerError then, and after timeout_s, where there
        are other ranks.
        """
        begun, pause = time.monotonic(), FIRST_PAUSE_S
        with contextlib.ExitStack() as stack:
            lost: list[str] | None = None
            while not ready():
                waited = time.monotonic() - begun
                if self.size > 1 and waited > LOOK_S:
                    if lost is None:  # most waits end before the first look
                        lost = stack.enter_context(self._looking())
                    if lost:
                        raise LostPeerError(lost[0])
                    if waited > self.timeout_s:
                        raise LostPeerError(f"no answer of the device for {self.timeout_s:g} s")
                time.sleep(pause)
                pause = min(1.1 * pause, LONGEST_PAUSE_S)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[list[str]]:
        """A list, to which a thread adds what it sees of a lost rank: the store may hang."""
        seen: list[str] = []
        ended = threading.Event()

        def look() -> None:
            assert self._store is not None
            try:
                store = self._store.clone()  # type: ignore[attr-defined] # a connection of its own
                store.set_timeout(timedelta(seconds=STORE_S))
                while not seen:
                    seen.extend(self._lost(store))
                    if ended.wait(LOOK_S):
                        return
            except RuntimeError as error:
                seen.append(f"the store of the process group is gone: {error}")

        threading.Thread(target=look, name="look", daemon=True).start()
        try:
            yield seen
        finally:
            ended.set()

    def _lost(self, store: "dist.Store") -> list[str]:
        """What the store and this machine tell of ranks that left in trouble, or died."""
        if store.check(["leaving"]):
            return ["another rank has left"]
        if not self._members:
            self._members = _members(store, self.size)
        return [
            f"rank {rank} is gone"
            for rank, (_, place, pid) in self._members.items()
            if place == _place() and _state(pid) in DEAD and not store.check([f"done/{rank}"])
        ]

    def done(self) -> None:
        """Tell the others that this rank leaves in order, and is not to be missed."""
        if self.size > 1:
            assert self._store is not None
            with contextlib.suppress(RuntimeError):  # whoever keeps the store may have left
                self._store.set(f"done/{self.rank}", "")

    @contextlib.contextmanager
    def over(self, run: Path, timeout_s: float, orphaned: Callable[[], None]) -> Any:
        """Watch a training in the folder `run`.

        On SIGUSR2, or without a beat for timeout_s, the stacks of all threads go to run/stacks.
        orphaned: called once if the process that started this one dies.
        """
        path = run / "stacks" / f"rank-{self.rank:05d}.txt"
        ended = threading.Event()
        with contextlib.suppress(OSError):  # a full disk is told of elsewhere
            path.parent.mkdir(exist_ok=True)
            self._stacks = open(path, "w", encoding="utf-8")  # noqa: SIM115
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        self._beat = time.monotonic()
        threading.Thread(
            target=self._guard, args=(ended, timeout_s, orphaned), name="watch", daemon=True
        ).start()
        try:
            yield
        finally:
            ended.set()
            self._close(path)

    def _close(self, path: Path) -> None:
        if self._stacks is None:
            return
        faulthandler.unregister(signal.SIGUSR2)
        stacks, self._stacks = self._stacks, None
        with contextlib.suppress(OSError):
            stacks.close()
            if not path.stat().st_size:
                path.unlink()
                path.parent.rmdir()  # not while another rank's are there

    def _guard(
        self,
        ended: threading.Event,
        timeout_s: float,
        orphaned: Callable[[], None],
    ) -> None:
        parent, told = os.getppid(), -1.0
        while not ended.wait(POLL_S):
            if os.getppid() != parent and "RANK" in os.environ:
                parent = os.getppid()
                orphaned()
            if time.monotonic() > self._beat + timeout_s and told != self._beat:
                told = self._beat
                self.dump()
                step = "" if self._step is None else f" after step {self._step}"
                where = f"; see {self._stacks.name}" if self._stacks is not None else ""
                print(
                    f"nanogpt: rank {self.rank}: nothing for {timeout_s:g} s{step}{where}",
                    file=sys.stderr,
                )

    def dump(self) -> None:
        """Write the stacks of this process's threads where they belong."""
        if self._stacks is not None:
            faulthandler.dump_traceback(file=self._stacks, all_threads=True)

    def _show(self, error: BaseException) -> None:
        """Write where this rank waited for the others."""
        if self._stacks is not None:
            traceback.print_exception(error, file=self._stacks)

    def leave(self, error: BaseException) -> BaseException:
        """The error to leave with: a failed collective's names the lost rank, any other is kept.

        All ranks that still can call it. Those that come together print one line: the others' are
        quiet.
        """
        if self._store is None or (isinstance(error, NanogptError) and error.agreed):
            return error
        if self._left is None:
            found: list[BaseException] = []
            asking = threading.Thread(
                target=lambda: found.append(self._roll_call(error)), daemon=True
            )
            asking.start()
            asking.join(ROLL_CALL_S)
            self._left = found[0] if found else self._nobody_answers(error)
        return self._left

    def _nobody_answers(self, error: BaseException) -> BaseException:
        if not is_lost_peer(error):
            return error
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        self._show(error)
        return StorageError(
            f"lost the other ranks{self._at()}: {place} does not answer; see whether that host and "
            "the network work; the same command resumes"
        )

    def _roll_call(self, error: BaseException) -> BaseException:
        assert self._store is not None
        lost = is_lost_peer(error)
        try:
            self._store.set_timeout(timedelta(seconds=STORE_S))
            self._store.set(
                f"left/{self.rank}", json.dumps(None if lost else one_line(explain(error)[1]))
            )
            self._store.set("leaving", "")
            if not lost:
                return error
            self._show(error)
            notes = self._notes()
            members = _members(self._store, self.size)
        except (RuntimeError, ValueError):  # the store is gone
            return self._nobody_answers(error)
        named = StorageError(self._name(notes, members))
        missing = {rank: member for rank, member in members.items() if rank not in notes}
        named.quiet = self._is_blamed() or self.rank != min(
            rank for rank, note in notes.items() if note is None
        )
        if not named.quiet:
            self._blame(missing)
        return named

    def _notes(self) -> dict[int, str | None]:
        """The notes of those that left so far: a reason, or None from whoever has lost another."""
        assert self._store is not None
        deadline = time.monotonic() + NOTES_S
        there: list[int] = []
        while len(there) < self.size and time.monotonic() < deadline:
            time.sleep(0.05)
            there = [rank for rank in range(self.size) if self._store.check([f"left/{rank}"])]
        return {rank: json.loads(self._store.get(f"left/{rank}")) for rank in there}

    def _name(self, notes: dict[int, str | None], members: dict[int, Any]) -> str:
        missing = [rank for rank in range(self.size) if rank not in notes]
        # A death breaks the connections of some ranks first: others, alive and well, may still wait
        # for these.
        missing = [rank for rank in missing if _is_gone(*members[rank])] or missing
        reasons = {rank: note for rank, note in notes.items() if note is not None}
        if missing:
            who = "lost " + "; ".join(
                f"rank {rank} {_fate(*members[rank])}" for rank in missing[:2]
            )
            who += f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        elif reasons:
            rank, reason = next(iter(reasons.items()))
            who = f"rank {rank} failed: {clipped(reason, 90)}"
        else:
            who = "the ranks lost each other: see whether the network works"
        stacks = (
            f"; stacks in {Path(self._stacks.name).parent}"
            if self._stacks is not None and missing
            else ""
        )
        return f"{who}{self._at()}{stacks}; the same command resumes"

    def _at(self) -> str:
        return "" if self._step is None else f", after step {self._step}"

    def _is_blamed(self) -> bool:
        """Whether the others have left without this rank: then they have told of it."""
        assert self._store is not None
        return self._store.check([f"blamed/{self.rank}"])

    def _blame(self, missing: dict[int, Any]) -> None:
        """Name the ranks that hang or are stopped, and have those of this machine write stacks."""
        assert self._store is not None
        for rank in missing:
            self._store.set(f"blamed/{rank}", "")
        woken = [
            pid
            for _, place, pid in missing.values()
            if place == _place() and _state(pid) not in DEAD
        ]
        for pid in woken:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGUSR2)
                os.kill(pid, signal.SIGCONT)
        if woken:
            time.sleep(0.5)


def _members(store: "dist.Store", size: int) -> dict[int, Any]:
    """Host, place and process id of each rank."""
    told = store.multi_get([f"member/{rank}" for rank in range(size)])
    return dict(enumerate(map(json.loads, told)))


@functools.cache
def _place() -> str:
    """Where process ids mean the same: one boot of one machine, one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return socket.gethostname()


def _state(pid: int) -> str:
    """A process's state in /proc: R, S, D, T, Z; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _is_gone(host: str, place: str, pid: int) -> bool:
    """Whether a process is dead or stopped for sure."""
    return place == _place() and _state(pid) in DEAD + STOPPED


def _fate(host: str, place: str, pid: int) -> str:
    if place != _place():
        return f"(pid {pid} on {host}), which does not answer"
    state, where = _state(pid), "" if host == socket.gethostname() else f" on {host}"
    return (
        f"(pid {pid}{where}), which "
        f"{'has died' if state in DEAD else 'is stopped' if state in STOPPED else 'hangs'}"
    )
