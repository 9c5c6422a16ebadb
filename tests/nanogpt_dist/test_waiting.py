"""Threads that wait for each other sleep while others take the cores, and compute the same."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import waiting
from nanogpt_dist.waiting import CROWDED, QUIET_LOOKS, Crowding, wait_briefly_when_crowded
from tests.conftest import CLONE

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="libgomp's threads, and /proc")

# Loops in two threads with pauses between them, in which the second one spins or sleeps.
LOOPS = """
import ctypes, hashlib, json, os, sys, time
import torch
from nanogpt_dist.waiting import SleepingTeam, team_size, torchs_libgomp
torch.set_num_threads(2)
matrix = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
vector = torch.ones(1 << 17)
def work():
    bits = (matrix @ matrix.T).softmax(-1).sum(0).numpy().tobytes()
    before = time.process_time()
    for _ in range(60):
        vector.add_(1)
        time.sleep(0.002)
    return time.process_time() - before, hashlib.sha256(bits).hexdigest()
work()
libgomp = torchs_libgomp()
team = SleepingTeam(libgomp, team_size(libgomp, 2))
found = [work()]
for change in (team.form, team.part):
    change()
    found.append(work())
print(json.dumps(found))
"""
# Two threads on one core, beside a process that is always busy there.
CROWD = """
import os, subprocess, sys, time
import torch
from nanogpt_dist import waiting
torch.set_num_threads(2)
matrix = torch.randn(512, 512)
matrix @ matrix
core = min(os.sched_getaffinity(0))
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), {core})
formed = []
waiting.SleepingTeam.form = lambda team: not formed.append(True)
assert waiting.wait_briefly_when_crowded(2)
assert waiting.wait_briefly_when_crowded(2)  # one thread looks, however often it is called
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
until = time.monotonic() + 60
while not formed and time.monotonic() < until:
    matrix @ matrix
busy.kill()
assert formed
"""
# As good as no room for threads, by one limit or another; libgomp would end the process.
NO_ROOM = """
import os, resource
import torch
from nanogpt_dist import waiting
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)
libgomp = waiting.torchs_libgomp()
assert libgomp is not None
team = waiting.SleepingTeam(libgomp, 32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for which, limit in ((resource.RLIMIT_AS, used + (64 << 20)), (resource.RLIMIT_NPROC, 40)):
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit, hard))
    assert not team.form()
    assert not team.is_there
    resource.setrlimit(which, (soft, hard))
assert team.form()
team.part()
print("alive")
"""
# More threads than are looked at, of which two compute; and a team, which does not.
MANY = """
import os, threading, time
import torch
from nanogpt_dist import waiting
torch.set_num_threads(2)
let_go = threading.Event()
for _ in range(60):
    threading.Thread(target=let_go.wait, daemon=True).start()
team = waiting.SleepingTeam(waiting.torchs_libgomp(), 20)
assert team.form()
computing = waiting.Computing()
def compute():
    until = time.process_time() + 0.3
    while time.process_time() < until:
        torch.randn(512, 512) @ torch.randn(512, 512)
compute()
for _ in range(waiting.CHOOSE_LOOKS):
    first = computing.waited_s()
files = os.listdir("/proc/self/fd")
compute()
second = computing.waited_s()
assert len(os.listdir("/proc/self/fd")) <= len(files) + waiting.LOOKED_AT
assert 1 <= len(second) <= 3, second
assert str(os.getpid()) in second, second
assert len(os.listdir(waiting.TASKS)) > 80
let_go.set()
"""


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CLONE, env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@LINUX
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_a_sleeping_team_ends_the_spinning_and_leaves_the_bits() -> None:
    (alone, bits), (beside, same), (after, again) = json.loads(run(LOOPS))
    assert bits == same == again
    # processor time: the second thread spins through the pauses, or sleeps
    assert beside < alone / 4
    assert after > 4 * beside


@LINUX
def test_a_busy_neighbour_is_noticed() -> None:
    run(CROWD)


@LINUX
def test_a_team_that_has_no_ample_room_is_not_made_and_nothing_ends() -> None:
    assert run(NO_ROOM) == "alive\n"


@LINUX
def test_only_threads_that_compute_are_looked_at() -> None:
    run(MANY)


def test_a_large_team_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libgomp:
        def omp_get_num_procs(self) -> int:
            return 128

    monkeypatch.setattr(waiting, "torchs_libgomp", Libgomp)
    assert waiting.team_size(Libgomp(), 8) == 122  # type: ignore[arg-type]
    assert not wait_briefly_when_crowded(8)


@pytest.mark.parametrize("name", waiting.SAID)
def test_who_says_how_to_wait_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1000")
    assert not wait_briefly_when_crowded(2)


def test_a_single_thread_waits_for_nobody() -> None:
    assert not wait_briefly_when_crowded(1)


def test_threads_spin_again_once_it_has_been_quiet_for_a_while() -> None:
    crowding, waited, now = Crowding({"1": 0.0}, 0.0), 0.0, 0.0
    told = []
    for share in [0.0, 0.5, *[0.0] * (QUIET_LOOKS - 1), 0.05, *[0.0] * QUIET_LOOKS]:
        waited, now = waited + share, now + 1
        told.append(crowding.look({"1": waited}, now))
    assert told == [False, *[True] * (2 * QUIET_LOOKS), False]


@given(st.lists(st.floats(0, 5), max_size=60))
def test_one_look_never_ends_a_crowd(shares: list[float]) -> None:
    crowding, waited = Crowding({"1": 0.0, "2": 0.0}, 0.0), 0.0
    told = [False]
    for second, share in enumerate(shares, 1):
        waited += share
        told.append(crowding.look({"1": waited, "2": 0.0}, float(second)))
        if share > 2 * CROWDED:
            assert told[-1]
    ends = [second for second, (was, now) in enumerate(pairwise(told)) if was and not now]
    for end in ends:
        assert end >= QUIET_LOOKS


def test_many_threads_that_each_wait_a_little_are_no_crowd() -> None:
    crowding = Crowding({str(each): 0.0 for each in range(64)}, 0.0)
    assert not crowding.look({str(each): 0.0016 for each in range(64)}, 1.0)
    begun_since = {"0": 0.0016, "new": 5.0}
    assert not crowding.look(begun_since, 2.0)
    assert crowding.look({"0": 0.0016, "new": 5.0 + 2 * CROWDED}, 3.0)
