"""How OpenMP's threads wait for each other on cores that others use, too. No torch. Linux alone.

A parallel loop ends when its last thread does, and the others spin until then, and until the next
loop. torch's libgomp spins 300,000 times, for 3 ms and more, before a thread sleeps: longer than
the scheduler's slice. Where another process has one of the cores, the thread that waits for
the one without a core burns its own slice with spinning, and each loop, of which a token has a
hundred, takes a slice. Alone, spinning is right: a thread that sleeps is late at the next loop.

So it is changed while the process runs. libgomp spins 100 times only where it has more threads than
there are cores, whether they work or not: a team of threads that sleeps makes it do so, and ends it
by ending. Which thread computes what stays as it is, and so does every bit. libgomp ends the whole
process where it cannot make a thread: such a team is small, and made only with ample room for it.

Source: libgomp's manual, GOMP_SPINCOUNT ("in case there are more OpenMP threads than available
CPUs"); kernel.org, Documentation/scheduler/sched-stats.rst (schedstat: time on a run queue).
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from nanogpt_dist.thread_limits import threads_fit

INTERVAL_S = 0.25  # between two looks, at least
COST = 0.005  # of the time, for looking at most: where that takes long, it is done less often
CROWDED = 0.1  # of the time, that the thread of ours which waits longest for a core waits
QUIET = 0.03
QUIET_LOOKS = 12  # in a row, before they may spin again
LOOKED_AT = 16  # threads at most
CHOOSE_LOOKS = 8  # after which those that compute are chosen again
COMPUTES_NS = 10**6  # of processor time since the last choice: a thread that computes
LARGEST = 64  # threads of a team
# how threads wait, or what a team may have: who says so is left alone
SAID = (
    *("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_DYNAMIC", "OMP_THREAD_LIMIT"),
    *("OMP_STACKSIZE", "GOMP_STACKSIZE"),
)
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

    def form(self) -> bool:
        """Return once it is there; False where there is no ample room for its threads."""
        if self._thread is None:
            if not threads_fit(self._size):
                return False
            self._let_go.clear()
            formed = threading.Event()
            thread = threading.Thread(target=self._hold, args=(formed,), name="openmp", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be made, after all
                return False
            self._thread = thread
            formed.wait()
        return True

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

    def __init__(self, waited: Mapping[str, float], now: float) -> None:
        self.is_crowded = False
        self._waited, self._now, self._quiet = waited, now, 0

    def look(self, waited: Mapping[str, float], now: float) -> bool:
        """waited: seconds on a run queue so far, of each thread; now: on any clock.

        The one that waits longest counts: all others wait for it.
        """
        both = waited.keys() & self._waited.keys()
        longest = max((waited[each] - self._waited[each] for each in both), default=0.0)
        share = longest / max(now - self._now, 1e-9)
        self._waited, self._now = waited, now
        self._quiet = self._quiet + 1 if share < QUIET else 0
        if share > CROWDED:
            self.is_crowded = True
        elif self._quiet >= QUIET_LOOKS:
            self.is_crowded = False
        return self.is_crowded


class Computing:
    """The threads of this process that computed most of late, LOOKED_AT of them at most.

    Others sleep, a team's above all, and need not be looked at.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}  # thread → an open file
        self._ran: dict[str, int] = {}  # thread → nanoseconds up to the last choice
        self._looks = 0

    def waited_s(self) -> dict[str, float]:
        """Seconds that each of them was ready and had no core."""
        if self._looks % CHOOSE_LOOKS == 0:
            self._choose()
        self._looks += 1
        waited = {}
        for thread, file in list(self._files.items()):
            try:
                waited[thread] = int(os.pread(file, 64, 0).split()[1]) / 1e9
            except (OSError, ValueError, IndexError):  # it has ended
                os.close(self._files.pop(thread))
        return waited

    def _choose(self) -> None:
        ran = {}
        for thread in os.listdir(TASKS):
            with contextlib.suppress(OSError, ValueError, IndexError):
                file = os.open(TASKS / thread / "schedstat", os.O_RDONLY)
                try:
                    ran[thread] = int(os.pread(file, 64, 0).split()[0])
                finally:
                    os.close(file)
        of_late = {each: ran[each] - self._ran.get(each, 0) for each in ran}
        self._ran = ran
        busiest = sorted(of_late, key=lambda each: of_late[each], reverse=True)[:LOOKED_AT]
        chosen = {each for each in busiest if of_late[each] >= COMPUTES_NS}
        for thread in self._files.keys() - chosen:
            os.close(self._files.pop(thread))
        for thread in chosen - self._files.keys():
            with contextlib.suppress(OSError):
                self._files[thread] = os.open(TASKS / thread / "schedstat", os.O_RDONLY)


def torchs_libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch has loaded, of several that may be; None: it has another OpenMP."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        for line in lines.splitlines():
            path = line.split(maxsplit=5)[-1]
            folder, _, name = path.rpartition("/")
            if name.startswith("libgomp") and folder.endswith(("/torch/lib", "/torch.libs")):
                return ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        pass
    return None


def team_size(libgomp: ctypes.CDLL, threads: int) -> int:
    """Of a team that has, with `threads` that compute, more threads than libgomp saw cores.

    It saw those that this process might use when it was loaded.
    """
    cores = max(len(os.sched_getaffinity(0)), int(libgomp.omp_get_num_procs()))
    return max(2, cores - threads + 2)


_started = threading.Lock()  # held for good once a thread looks


def wait_briefly_when_crowded(threads: int) -> bool:
    """From now on let `threads` that compute wait by sleeping while others take the cores.

    By a thread that looks four times a second. Whether one does: not for a single thread, with
    another OpenMP than libgomp, where the environment says how to wait, or where most cores are
    left to others, so that it would take a team of more than LARGEST. Call it once torch has been
    imported.
    """
    if threads < 2 or any(name in os.environ for name in SAID) or not TASKS.is_dir():
        return False
    libgomp = torchs_libgomp()
    if libgomp is None or (size := team_size(libgomp, threads)) > LARGEST:
        return False
    if _started.acquire(blocking=False):
        team = SleepingTeam(libgomp, size)
        threading.Thread(target=_watch, args=(team,), name="crowding", daemon=True).start()
    return True


def _watch(team: SleepingTeam) -> None:
    computing = Computing()
    crowding = Crowding(computing.waited_s(), time.monotonic())
    pause = INTERVAL_S
    while True:
        time.sleep(pause)
        begun = time.thread_time()
        crowded = crowding.look(computing.waited_s(), time.monotonic())
        pause = max(INTERVAL_S, (time.thread_time() - begun) / COST)
        if crowded and not team.is_there:
            if not team.form():
                return
        elif not crowded and team.is_there:
            team.part()
