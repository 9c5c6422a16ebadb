"""Watch the other ranks, and the clock: names, stacks, and two threads.

A rank that waits for another in a read of the device hears no signal and sees no peer die, and so
does whoever is in the midst of NCCL. A thread therefore looks for ranks that left, died or give no
sign, wait() polls what it waits for, and where the main thread does not come to it at all, that
thread ends the process.
"""

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from nanogpt_dist.distributed.roll_call import STORE_S, Member, RollCall, is_dead, members_of
from nanogpt_dist.errors import LostPeerError, OutOfMemoryError, StoppedError, StuckError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 50e-6, 1e-3  # of wait(); a step takes 1e-2 s at least
LOOK_S = 1.0  # between two looks for a lost rank
GRACE_S = 10.0  # within which the main thread notices that another rank is gone
UNWIND_S = 30.0  # within which it has closed all, after an error
# Without an answer of the store, which goes with torchrun: the ranks save and leave meanwhile.
STORE_GONE_S = 1800.0

ExitWith = Callable[[BaseException], NoReturn]


class Watchdog(RollCall):
    """What one rank knows of itself and the others.

    timeout_s: seconds without an answer after which the others count as lost.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: "dist.Store | None",
        timeout_s: float = math.inf,
    ) -> None:
        super().__init__(rank, size, store)
        self.timeout_s = timeout_s
        self.lost: str | None = None  # what was seen of another rank that is gone
        # who else is told of the end, and may raise StoppedError for it
        self.noting: list[Callable[[BaseException], None]] = []
        self.ends_process = False  # whether the process ends with an error, as under a command
        self._beat = time.monotonic()

    def beat(self, step: int) -> None:
        """Tell that this rank is alive, after `step` steps."""
        self._step, self._beat = step, time.monotonic()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return once ready() is true, as event.query() is when the device has come to the event.

        Meanwhile signals are heard, as nowhere in a read of the device. Raises LostPeerError within
        seconds where another rank left or died, StuckError after timeout_s; never where there is no
        other.
        """
        begun, pause = time.monotonic(), FIRST_PAUSE_S
        while not ready():
            if self.size > 1:
                if self.lost is not None:
                    raise LostPeerError(self.lost)
                if time.monotonic() > begun + self.timeout_s:
                    raise StuckError(f"no answer of the device for {self.timeout_s:g} s")
            time.sleep(pause)
            pause = min(1.1 * pause, LONGEST_PAUSE_S)

    @contextlib.contextmanager
    def watching(self, exit_with: ExitWith | None) -> Iterator[None]:
        """A block in which a thread looks for ranks that left or died.

        exit_with: ends this process with an error, where the main thread does not come to it; None:
        it is waited for.
        """
        ended = threading.Event()
        self.ends_process = exit_with is not None
        if self.size > 1:
            threading.Thread(
                target=self._watch, args=(ended, exit_with), name="watch", daemon=True
            ).start()
        try:
            yield
        finally:
            ended.set()

    def _watch(self, ended: threading.Event, exit_with: ExitWith | None) -> None:
        assert self._store is not None
        store: dist.Store | None = None
        members: dict[int, Member] = {}
        neighbour = Neighbour((self.rank + 1) % self.size)
        parent, answered = os.getppid(), time.monotonic()
        while not (self.lost or self._leaving.is_set() or ended.wait(LOOK_S)):
            self._store_gone = self._store_gone or os.getppid() != parent  # torchrun has it mostly
            try:
                if store is None:
                    store = self._store.clone()  # type: ignore[attr-defined] # its own connection
                    store.set_timeout(timedelta(seconds=STORE_S))
                    members = members_of(store, self.size)
                if not self._store_gone:
                    store.add(f"alive/{self.rank}", 1)
                    self.lost = _lost(store, members) or neighbour.lost(store, self.timeout_s)
                    answered = time.monotonic()
            except dist.DistNetworkError:
                self._store_gone = True
            except RuntimeError:
                pass  # it is slow, as it may be
            if time.monotonic() > answered + max(self.timeout_s, STORE_GONE_S):
                self.lost = "the store of the process group does not answer"
        if exit_with is None or ended.is_set():
            return
        if (self._leaving.wait(GRACE_S) and ended.wait(UNWIND_S)) or ended.is_set():
            return
        self.dump()
        error = self.leave(LostPeerError(self.lost or "it hangs as it leaves"))
        for note in list(self.noting):
            try:
                note(error)
            except StoppedError as instead:
                error = instead
            except Exception:  # this rank ends as the others do all the same
                traceback.print_exc()
        if isinstance(error, OutOfMemoryError) and error.falls_back:
            self.wait_for_store_to_go()
        exit_with(error)

    @contextlib.contextmanager
    def over(self, run: Path, orphaned: Callable[[], None]) -> Any:
        """Watch a training in the folder `run`.

        On SIGUSR2, or without a beat for timeout_s, the stacks of all threads go to run/stacks.
        orphaned: called once if the process that started this one dies.
        """
        path = run / "stacks" / f"rank-{self.rank:05d}.txt"
        ended = threading.Event()
        with contextlib.suppress(OSError):  # a full disk is told of elsewhere
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)  # a link or a pipe, in a folder of somebody else's
            self._stacks = open(path, "x", encoding="utf-8")  # noqa: SIM115
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        self._beat = time.monotonic()
        threading.Thread(
            target=self._guard, args=(ended, orphaned), name="guard", daemon=True
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

    def _guard(self, ended: threading.Event, orphaned: Callable[[], None]) -> None:
        parent, told = os.getppid(), -1.0
        while not ended.wait(LOOK_S):
            if os.getppid() != parent and "RANK" in os.environ:
                parent = os.getppid()
                orphaned()
            if time.monotonic() > self._beat + self.timeout_s and told != self._beat:
                told = self._beat
                self.dump()
                step = "" if self._step is None else f" after step {self._step}"
                where = f"; see {self._stacks.name}" if self._stacks is not None else ""
                print(
                    f"nanogpt: rank {self.rank}: nothing for {self.timeout_s:g} s{step}{where}",
                    file=sys.stderr,
                )

    def dump(self) -> None:
        """Write the stacks of this process's threads where they belong."""
        if self._stacks is not None:
            faulthandler.dump_traceback(file=self._stacks, all_threads=True)


class Neighbour:
    """The rank of whose life one rank looks after, by a number in the store that has to grow.

    So a process that is stopped, and a host that is gone, are missed also in a save, in which the
    ranks wait for each other's disks for up to a day.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._beats, self._same = 0, 0

    def lost(self, store: "dist.Store", timeout_s: float) -> str | None:
        """What is wrong with it, once its number was the same in all looks of timeout_s."""
        beats = store.add(f"alive/{self.rank}", 0)
        # looks are counted, not seconds: a machine that was suspended has made none
        self._same = self._same + 1 if beats == self._beats else 0
        self._beats = beats
        if self._same * LOOK_S <= timeout_s or store.check([f"done/{self.rank}"]):
            return None
        store.set("leaving", "")  # the others look after other ranks
        return f"rank {self.rank} has given no sign for {timeout_s:g} s"


def _lost(store: "dist.Store", members: dict[int, Member]) -> str | None:
    """What the store and this machine tell of a rank that left in trouble, or died."""
    if store.check(["leaving"]):
        return "another rank has left"
    for rank, member in members.items():
        if is_dead(*member) and not store.check([f"done/{rank}"]):
            return f"rank {rank} has died"
    return None
