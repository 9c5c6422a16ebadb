"""Find the rank that failed, by notes in the store of the process group.

Each rank registers there. When a collective fails, each survivor leaves a note, and whoever leaves
none is the one that was lost: killed, stopped, hanging, or behind a cut cable. A rank that fails by
itself leaves its reason. Nothing here waits for long: the store may be gone as well.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import IO, NamedTuple

import torch.distributed as dist

from nanogpt_dist.errors import (
    INTERRUPTED,
    NanogptError,
    OutOfMemoryError,
    StorageError,
    StuckError,
    clipped,
    error_of,
    explain,
    is_lost_peer,
    one_line,
)
from nanogpt_dist.gpu_errors import is_out_of_memory, nccl_said

NOTES_S = 2.0  # within which survivors have noticed that a rank is gone, once one has
ASKED_S = 25.0  # within which all ranks have left that are to begin anew
STORE_S = 3.0  # for an answer of the store
STORE_GOES_S = 40.0  # within which all ranks have left a store that one of them keeps
ROLL_CALL_S = 8.0  # for all of it
DEAD = ("", "Z", "X")  # states of a process, as _state() tells them
STOPPED = ("T", "t")


class Note(NamedTuple):
    """Why a rank leaves: exit code, reason, and whether for lack of memory.

    falls_back: of memory, so that all of them are to try with less.
    """

    code: int
    reason: str
    of_memory: bool
    falls_back: bool


Member = tuple[str, str, int]  # a rank's host, its place as _place() tells it, its process id


class RollCall:
    """What one rank tells the others as it leaves, and what it learns of them.

    store: None in a process without a group.
    """

    def __init__(self, rank: int, size: int, store: "dist.Store | None") -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._step: int | None = None
        self._stacks: IO[str] | None = None
        # for each question to a store that is gone torch writes a page to standard error
        self._store_gone = False
        self._left: BaseException | None = None
        self._leaving = threading.Event()
        self._one_at_a_time = threading.Lock()
        if store is not None:
            store.set(f"member/{rank}", json.dumps([socket.gethostname(), _place(), os.getpid()]))

    def leave(self, error: BaseException) -> BaseException:
        """The error to leave with: a failed collective's names the lost rank, any other is kept.

        All ranks that still can call it. Those that come together print one line: the others' are
        quiet.
        """
        if self._store is None:
            return error
        if isinstance(error, NanogptError) and error.agreed:
            self.done()
            return error
        self._leaving.set()
        with self._one_at_a_time:
            if self._left is None:
                found: list[BaseException] = []
                asking = threading.Thread(
                    target=lambda: found.append(self._roll_call(error)), daemon=True
                )
                try:
                    asking.start()
                except RuntimeError:  # no memory for its stack
                    asking.run()
                else:
                    asking.join(ROLL_CALL_S)
                self._left = found[0] if found else self._nobody_answers(error)
        return self._left

    def done(self) -> None:
        """Tell the others that this rank leaves in order, and is not to be missed."""
        if self.size > 1 and not self._store_gone:
            assert self._store is not None
            with contextlib.suppress(RuntimeError):  # whoever keeps the store may have left
                self._store.set(f"done/{self.rank}", "")

    def wait_for_store_to_go(self) -> None:
        """Return once a store that rank 0 keeps is gone, so that the ranks can meet at another.

        Rank 0 waits until the others have learnt why it goes.
        """
        if self.size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        assert self._store is not None
        deadline = time.monotonic() + STORE_GOES_S
        left = [f"left/{rank}" for rank in range(self.size)]
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:
                if self._store.check(left) and self.rank == 0:
                    time.sleep(NOTES_S)  # others may be at their roll call
                    return
                time.sleep(0.1)

    def agree_to_stop(self, asked: bool) -> bool:
        """Whether any rank is `asked` to stop; all that leave to begin anew call it.

        Those that do not come to it within ASKED_S are not waited for.
        """
        if self._store is None or self.size == 1:
            return asked
        told = [f"asked/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + ASKED_S
        with contextlib.suppress(RuntimeError):  # the store is gone
            self._store.set(told[self.rank], str(int(asked)))
            while not self._store.check(told) and time.monotonic() < deadline:
                time.sleep(0.05)
            there = [name for name in told if self._store.check([name])]
            asked = asked or any(self._store.get(name) == b"1" for name in there)
            if asked and self.rank == 0:  # which may keep the store: the others have still to read
                time.sleep(1.0)
        return asked

    def _nobody_answers(self, error: BaseException) -> BaseException:
        if not is_lost_peer(error):
            return error
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        self._show(error)
        return StorageError(
            f"lost the other ranks{self._at()}: {place} does not answer; see whether that host and "
            "the network work; the same command resumes"
        )

    def _show(self, error: BaseException) -> None:
        """Write where this rank waited for the others."""
        if self._stacks is not None:
            traceback.print_exception(error, file=self._stacks)

    def _roll_call(self, error: BaseException) -> BaseException:
        assert self._store is not None
        lost = is_lost_peer(error)
        try:
            self._store.set_timeout(timedelta(seconds=STORE_S))
            code, reason = explain(error)
            note = None if lost else Note(int(code), one_line(reason), *_of_memory(error))
            self._store.set(f"left/{self.rank}", json.dumps(note))
            self._store.set("leaving", "")
            if not lost:
                if isinstance(error, OutOfMemoryError):  # several may be short of it at once
                    error.quiet = self._store.add("out of memory", 1) > 1
                return error
            self._show(error)
            notes = self._notes()
            members = members_of(self._store, self.size)
        except (RuntimeError, ValueError):  # the store is gone
            return self._nobody_answers(error)
        named = self._name(error, notes, members)
        named.quiet = (
            isinstance(named, OutOfMemoryError)  # whoever is short of it says so
            or self._is_blamed()
            or self.rank != min(rank for rank, note in notes.items() if note is None)
        )
        if not named.quiet:
            self._blame({rank: one for rank, one in members.items() if rank not in notes})
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(NOTES_S)  # the store is this process's, and others may be at their roll call
        return named

    def _notes(self) -> dict[int, Note | None]:
        """The notes of those that left so far; None from whoever has lost another."""
        assert self._store is not None
        deadline = time.monotonic() + NOTES_S
        there: list[int] = []
        while len(there) < self.size and time.monotonic() < deadline:
            time.sleep(0.05)
            there = [rank for rank in range(self.size) if self._store.check([f"left/{rank}"])]
        told = {rank: json.loads(self._store.get(f"left/{rank}")) for rank in there}
        return {rank: note and Note(*note) for rank, note in told.items()}

    def _name(
        self,
        error: BaseException,
        notes: dict[int, Note | None],
        members: dict[int, Member],
    ) -> NanogptError:
        missing = [rank for rank in range(self.size) if rank not in notes]
        gone = [rank for rank in missing if _is_gone(*members[rank])]
        reasons = {rank: note for rank, note in notes.items() if note is not None}
        if reasons and not gone:  # others, alive and well, may not have heard of it yet
            rank, (code, reason, of_memory, falls_back) = next(iter(reasons.items()))
            message = f"rank {rank} failed{self._at()}: {reason}"
            if of_memory:
                return OutOfMemoryError(reason, falls_back)
            return StorageError(message) if code == INTERRUPTED else error_of(code, message)
        # A death breaks the connections of some ranks first: others may still wait for these.
        missing = gone or missing
        if missing:
            who = "lost " + "; ".join(
                f"rank {rank} {_fate(*members[rank])}" for rank in missing[:2]
            )
            who += f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        elif isinstance(error, StuckError):
            who = f"{error}, on all ranks"
        else:
            said = clipped(nccl_said(str(error)), 60)
            who = f"the ranks lost each other{said and f' ({said})'}: see whether the network works"
        stacks = f"; stacks in {Path(self._stacks.name).parent}" if self._stacks and missing else ""
        return StorageError(f"{who}{self._at()}{stacks}; the same command resumes")

    def _at(self) -> str:
        return "" if self._step is None else f", after step {self._step}"

    def _is_blamed(self) -> bool:
        """Whether the others have left without this rank: then they have told of it."""
        assert self._store is not None
        return self._store.check([f"blamed/{self.rank}"])

    def _blame(self, missing: dict[int, Member]) -> None:
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


def _of_memory(error: BaseException) -> tuple[bool, bool]:
    """Whether `error` is for lack of memory, and whether all ranks are to try with less."""
    if isinstance(error, OutOfMemoryError):
        return True, error.falls_back
    return is_out_of_memory(error), False


def members_of(store: "dist.Store", size: int) -> dict[int, Member]:
    """Each rank, as it has registered."""
    told = store.multi_get([f"member/{rank}" for rank in range(size)])
    return {rank: tuple(json.loads(text)) for rank, text in enumerate(told)}


def is_dead(host: str, place: str, pid: int) -> bool:
    """Whether a process is dead for sure: it was on this machine."""
    return place == _place() and _state(pid) in DEAD


@functools.cache
def _place() -> str:
    """Where process ids mean the same: one boot of one machine, one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # nobody else is there


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
