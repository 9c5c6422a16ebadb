"""How OpenMP's threads wait for each other on cores that others use, too. No torch. Linux alone.

A parallel loop ends when its last thread does, and the others spin until then, and until the next
loop. torch's libgomp spins 300,000 times, for 3 ms and more, before a thread sleeps: longer than
the scheduler's slice. Where another process has one of the cores, the thread that waits for
the one without a core burns its own slice with spinning, and each loop, of which a token has a
hundred, takes a slice. Alone, spinning is right: a thread that sleeps is late at the next loop.

So it is changed while the process runs. libgomp spins 100 times only where it has more threads than
there are cores, whether they work or not: a team of threads that sleeps makes it do so, and ends it
by ending. Which thread computes what stays as it is, and so does every bit.

Source: libgomp's manual, GOMP_SPINCOUNT ("in case there are more OpenMP threads than available
CPUs"); kernel.org, Documentation/scheduler/sched-stats.rst (schedstat: time on a run queue).
"""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

INTERVAL_S = 0.25  # between two looks
CROWDED = 0.1  # of the time, that threads of ours wait for a core, all together
QUIET = 0.03
QUIET_LOOKS = 12  # in a row, before they may spin again
SAID = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
TASKS = Path("/proc/self/task")


class SleepingTeam:
    """Threads of libgomp's that sleep: as long as they are there, all others spin briefly.

    size: of the team; with those that compute, more than there are cores.
    """

    def __init__(self, libgomp: ctypes.CDLL, size: int) -> None:
        self._libgomp, self._size = libgomp, size
        self._let_go = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        return self._thread is not None

    def form(self) -> None:
        """Return once it is there."""
        if self._thread is None:
            self._let_go.clear()
            formed = threading.Event()
            self._thread = threading.Thread(
                target=self._hold, args=(formed,), name="openmp", daemon=True
            )
            self._thread.start()
            formed.wait()

    def part(self) -> None:
        """End it: a team goes with the thread that made it."""
        if self._thread is not None:
            self._let_go.set()
            self._thread.join()
            self._thread = None

    def _hold(self, formed: threading.Event) -> None:
        # free(NULL) does nothing, in each thread of the team; then they wait for more
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._libgomp.GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        formed.set()
        self._let_go.wait()


class Crowding:
    """Whether others take the cores, by how long threads of ours were ready and had none."""

    def __init__(self, waited: float, now: float) -> None:
        self.is_crowded = False
        self._waited, self._now, self._quiet = waited, now, 0

    def look(self, waited: float, now: float) -> bool:
        """waited: seconds on a run queue so far, of all threads; now: on any clock."""
        share = (waited - self._waited) / max(now - self._now, 1e-9)
        self._waited, self._now = waited, now
        self._quiet = self._quiet + 1 if share < QUIET else 0
        if share > CROWDED:
            self.is_crowded = True
        elif self._quiet >= QUIET_LOOKS:
            self.is_crowded = False
        return self.is_crowded


def waited_s() -> float:
    """Seconds that the threads of this process were ready and had no core; 0 if not told."""
    total = 0
    for task in TASKS.glob("*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # the thread has ended
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


_started = threading.Lock()  # held for good once a thread looks


def wait_briefly_when_crowded(threads: int) -> bool:
    """From now on let `threads` that compute wait by sleeping while others take the cores.

    By a thread that looks four times a second. Whether one does: not for a single thread, with
    another OpenMP than libgomp, or where the environment says how to wait. Call it once torch has
    been imported.
    """
    if threads < 2 or any(name in os.environ for name in SAID) or not TASKS.is_dir():
        return False
    try:
        libgomp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:  # torch brings another one
        return False
    if _started.acquire(blocking=False):
        team = SleepingTeam(libgomp, max(2, (os.cpu_count() or 1) - threads + 2))
        threading.Thread(target=_watch, args=(team,), name="crowding", daemon=True).start()
    return True


def _watch(team: SleepingTeam) -> None:
    crowding = Crowding(waited_s(), time.monotonic())
    while True:
        time.sleep(INTERVAL_S)
        crowded = crowding.look(waited_s(), time.monotonic())
        if crowded != team.is_there:
            (team.form if crowded else team.part)()
