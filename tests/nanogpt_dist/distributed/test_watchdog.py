"""Ranks that die, stop, hang or fail: the others name them, show the stacks, and leave. Real ranks,
real signals.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from launch import processes
from nanogpt_dist.distributed import roll_call, watchdog
from nanogpt_dist.distributed.watchdog import Watchdog
from nanogpt_dist.errors import LostPeerError, OutOfMemoryError, StoppedError, StuckError
from tests.conftest import start_ranks
from tests.faults.trainings import Training, prepare


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    started = []

    def start(*more: str) -> Training:
        prepare(tmp_path)
        started.append(Training(tmp_path, "run", 10**6, 10**6, [], *more))
        return started[-1]

    yield start
    for one in started:
        processes.send(signal.SIGKILL, one.living())


def wait_for_updates(training: Training) -> list[int]:
    """Ids of the ranks, once they are at work."""
    deadline = time.monotonic() + 60
    metrics = training.run / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return training.ranks()


def test_a_killed_rank_is_named_and_all_leave(training: Callable[..., Training]) -> None:
    run = training()
    process = run.start()
    ranks = wait_for_updates(run)
    os.kill(ranks[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 74
    assert f"lost rank 1 (pid {ranks[1]}), which has died, after step " in stderr.splitlines()[-1]
    assert f"rank 1 (pid {ranks[1]}) was killed by SIGKILL" in stderr
    # rank, torchrun, launcher
    assert len([line for line in stderr.splitlines() if line.startswith("nanogpt")]) == 3
    assert not run.living()
    status = json.loads((run.run / "status.json").read_text())
    assert (status["verdict"], status["code"]) == ("failed", 74)
    assert "rank 1" in status["message"]


@pytest.mark.thorough
def test_a_stopped_rank_is_named_with_the_stacks_of_all(training: Callable[..., Training]) -> None:
    run = training("--timeout-s", "4")
    process = run.start()
    ranks = wait_for_updates(run)
    os.kill(ranks[0], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 74
    assert f"lost rank 0 (pid {ranks[0]}), which is stopped" in stderr
    assert "stacks in run/stacks" in stderr
    stacks = [(run.run / "stacks" / f"rank-0000{rank}.txt").read_text() for rank in range(2)]
    assert all("training/loop.py" in text and "in loop" in text for text in stacks), stacks
    assert "Traceback" in stacks[1], "where the survivor waited"
    assert not run.living()


def test_ranks_whose_torchrun_is_killed_save_and_leave(training: Callable[..., Training]) -> None:
    run = training()
    at = run.line.index("launch")
    options = [*("--standalone", "--local-addr", "127.0.0.1"), *run.line[at + 1 : at + 3]]
    run.line = [
        run.line[0],
        "-m",
        "torch.distributed.run",
        *options,
        "-m",
        "nanogpt_dist",
        *run.line[at + 3 :],
    ]
    process = run.start()
    ranks = wait_for_updates(run)
    process.kill()
    deadline = time.monotonic() + 60
    while run.living() & set(ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    status = json.loads((run.run / "status.json").read_text())
    assert (status["verdict"], status["code"]) == ("stopped", 75)
    assert run.newest_step() == status["step"] > 0


KEEPER = """
import time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


def test_a_store_that_is_gone_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.05)
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        store = dist.TCPStore("127.0.0.1", int(keeper.stdout.readline()), is_master=False)
        ranks = [Watchdog(rank, 2, store) for rank in range(2)]
        with ranks[0].watching(None):
            time.sleep(0.3)
            keeper.kill()
            keeper.wait()
            time.sleep(0.6)
        ranks[0].done()
    finally:
        keeper.kill()
    # each question makes torch write a page
    assert capfd.readouterr().err.count("[c10d] ") == 1
    assert ranks[0].lost is None


@pytest.mark.parametrize(("look_s", "looks"), [(1.0, 4), (2.0, 2)])
def test_a_neighbour_is_missed_once_it_was_silent_in_all_looks_of_the_timeout(
    look_s: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 s. One that never began is silent from the first look on."""
    monkeypatch.setattr(watchdog, "LOOK_S", look_s)
    missed = "rank 1 has given no sign for 3 s"
    store, neighbour = dist.HashStore(), watchdog.Neighbour(1)
    assert [neighbour.lost(store, 3.0) for _ in range(looks)] == [*[None] * (looks - 1), missed]
    assert store.check(["leaving"]), "so that nobody else is missed for it"

    store, neighbour = dist.HashStore(), watchdog.Neighbour(1)
    for _ in range(3):
        store.add("alive/1", 1)
        assert [neighbour.lost(store, 3.0) for _ in range(looks)] == [None] * looks
    assert not store.check(["leaving"])
    assert neighbour.lost(store, 3.0) == missed
    store.set("done/1", "")
    assert neighbour.lost(store, 3.0) is None, "it has left in order"


def test_a_rank_that_has_died_or_left_is_told_of_by_the_store_and_the_machine() -> None:
    store = dist.HashStore()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    watched = [Watchdog(rank, 3, store) for rank in range(3)]
    members = roll_call.members_of(store, 3)
    host, place, _ = members[2]
    dead = {**members, 2: (host, place, ended.pid)}
    assert watchdog._lost(store, members) is None
    assert watchdog._lost(store, dead) == "rank 2 has died"
    watched[2].done()
    assert watchdog._lost(store, dead) is None
    watched[1].leave(ValueError("the disk is on fire"))
    assert watchdog._lost(store, dead) == watchdog._lost(store, members) == "another rank has left"


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_each_rank_is_missed_by_the_one_before_it(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.05)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [Watchdog(rank, 3, store, 1.0) for rank in range(3)]
    before, after = ranks[silent - 1], ranks[(silent + 1) % 3]
    with before.watching(None), after.watching(None):
        until(lambda: before.lost and after.lost)
    assert before.lost == f"rank {silent} has given no sign for 1 s"
    assert after.lost == "another rank has left"
    with pytest.raises(LostPeerError, match="another rank has left"):
        after.wait(lambda: False)
    assert before.ends_process is False


def test_who_has_lost_another_knows_within_2_s_and_is_gone_within_35() -> None:
    """Beyond the timeout. torchrun's store may be gone for half an hour: the ranks save then."""
    assert watchdog.LOOK_S < 2
    assert watchdog.LOOK_S + watchdog.GRACE_S < 15
    assert watchdog.UNWIND_S < 35
    assert watchdog.STORE_GONE_S <= 1800


def test_a_device_that_is_late_is_given_its_time_and_no_more() -> None:
    late = Watchdog(0, 2, dist.HashStore(), timeout_s=0.3)
    answers = iter([False, False, True])
    late.wait(lambda: next(answers))
    with pytest.raises(StuckError, match=r"no answer of the device for 0\.3 s"):
        late.wait(lambda: False)


def test_it_is_looked_often_at_first_and_each_millisecond_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    Watchdog(0, 1, None).wait(lambda: len(pauses) == 100)
    assert pauses == sorted(pauses)
    assert max(pauses[:2]) < 1e-4
    assert pauses[-1] == 1e-3


def learnt_of_memory(note: Callable[[BaseException], None]) -> tuple[BaseException, list[str]]:
    """What rank 0 leaves with, whose main thread hangs, and what it has done before.

    Rank 1 has left to begin anew with less; `note` is told of the end.
    """
    store = dist.HashStore()
    here, other = (Watchdog(rank, 2, store) for rank in range(2))
    other.leave(OutOfMemoryError("out of memory; the next attempt has less", True))
    ends: list[BaseException] = []
    done: list[str] = []
    here.lost = "another rank has left"
    here.noting.append(note)
    here.wait_for_store_to_go = lambda: done.append("waited")  # type: ignore[method-assign]
    here._watch(threading.Event(), ends.append)  # type: ignore[arg-type]
    return ends[0], done


def test_a_rank_that_is_stuck_begins_anew_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.05)
    monkeypatch.setattr(roll_call, "NOTES_S", 0.3)

    def fails(error: BaseException) -> None:
        raise OSError("the disk is on fire")

    def stops(error: BaseException) -> None:
        raise StoppedError("stopped as memory ran out")

    for note in (lambda error: None, fails):
        error, done = learnt_of_memory(note)
        assert isinstance(error, OutOfMemoryError)
        assert error.falls_back
        assert done == ["waited"], "for the store of the others"
    error, done = learnt_of_memory(stops)
    assert isinstance(error, StoppedError)
    assert not done


@pytest.mark.parametrize("asked", [(False, False), (True, False), (False, True)])
def test_ranks_that_begin_anew_agree_on_a_stop(asked: tuple[bool, bool]) -> None:
    store = dist.HashStore()
    ranks = [Watchdog(rank, 2, store) for rank in range(2)]
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda rank, stop: rank.agree_to_stop(stop), ranks, asked))
    assert told == [any(asked)] * 2
    assert Watchdog(0, 1, None).agree_to_stop(asked[0]) == asked[0]


def end_of(way: str, ranks: int = 3) -> list[tuple["subprocess.Popen[str]", str, str]]:
    """The ranks of tests/ranks/waiting.py, and what they have printed."""
    started = start_ranks("waiting", ranks, way)
    try:
        return [(rank, *rank.communicate(timeout=60)) for rank in started]
    finally:
        for rank in started:
            rank.kill()


def waits(way: str, ranks: int = 3) -> tuple[list[int], list[dict[str, Any]]]:
    """Process ids of the ranks, and what those that lived have told."""
    ended = end_of(way, ranks)
    assert all(out or rank == 1 for rank, (_, out, _) in enumerate(ended)), ended
    return [process.pid for process, _, _ in ended], [json.loads(out) for _, out, _ in ended if out]


def test_who_waits_for_the_device_names_the_rank_that_was_killed() -> None:
    pids, told = waits("killed")
    assert len(told) == 2
    for one in told:
        assert f"lost rank 1 (pid {pids[1]}), which has died" in one["error"], one
        assert one["seconds"] < 10, one


def test_who_waits_for_the_device_hears_why_another_rank_failed() -> None:
    _, (first, second, third) = waits("fails")
    assert second["error"] == "the disk is on fire"
    for one in (first, third):
        assert "rank 1 failed: bug: ValueError: the disk is on fire" in one["error"], one
        assert one["seconds"] < 10, one


def test_a_device_that_never_gets_ready_ends_the_wait() -> None:
    _, told = waits("hangs", ranks=2)
    for one in told:
        assert 3 < one["seconds"] < 10, one
        assert one["error"] == (
            "no answer of the device for 3 s, on all ranks; the same command resumes"
        )


def test_a_rank_that_no_poll_reaches_is_ended_all_the_same() -> None:
    (first, out, told), (second, _, _), (third, _, also_told) = end_of("stuck")
    assert not out
    assert [first.returncode, third.returncode] == [74, 74]
    assert f"nanogpt: error: lost rank 1 (pid {second.pid}), which has died" in told
    assert not also_told, "one tells"


def test_a_rank_that_is_stopped_is_missed_where_no_timeout_is() -> None:
    (first, _, told), (second, _, _), (third, _, also_told) = end_of("stopped")
    assert [first.returncode, third.returncode] == [74, 74]
    assert f"nanogpt: error: lost rank 1 (pid {second.pid}), which is stopped" in told + also_told


def test_a_rank_that_hangs_on_its_way_out_says_why_and_is_ended() -> None:
    (_, out, _), (second, _, told), _ = end_of("unwinds")
    assert second.returncode == 70
    assert told.startswith("nanogpt: error (rank 1): bug: ValueError: the disk is on fire")
    assert "rank 1 failed: bug: ValueError" in json.loads(out)["error"]


def test_a_rank_that_left_in_order_is_not_missed() -> None:
    _, told = waits("done")
    assert [one["error"] for one in told] == ["None"] * 3
    assert told[0]["seconds"] >= 2


def test_alone_it_waits_as_long_as_it_takes_and_hears_signals() -> None:
    alone = Watchdog(0, 1, None, timeout_s=0.1)
    end = time.monotonic() + 0.7
    alone.wait(lambda: time.monotonic() > end)

    def interrupt() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.raises(KeyboardInterrupt):
        alone.wait(interrupt)


def test_alone_nobody_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread"))
    with Watchdog(0, 1, None).watching(None):
        pass


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_ranks_that_live_are_not_missed_and_the_threads_end_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.02)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [Watchdog(rank, 2, store, 30.0) for rank in range(2)]
    with (
        ranks[0].watching(None),
        ranks[1].watching(pytest.fail),
        ranks[0].over(tmp_path, pytest.fail),
    ):
        until(lambda: min(store.add(f"alive/{rank}", 0) for rank in range(2)) > 5)
        assert [rank.lost for rank in ranks] == [None, None]
        assert [rank.ends_process for rank in ranks] == [False, True]
        each = [*threads("watch"), *threads("guard")]
        assert len(each) == 3
        assert all(thread.daemon for thread in each), "no end waits for them"
    until(lambda: not threads("watch") and not threads("guard"))


@pytest.mark.parametrize("started_by_torchrun", [True, False])
def test_a_rank_whose_parent_has_died_is_told_once(
    started_by_torchrun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    monkeypatch.setattr(os, "getppid", lambda: parents[-1])
    monkeypatch.delenv("RANK", raising=False)
    if started_by_torchrun:
        monkeypatch.setenv("RANK", "0")
    parents, told = [2], list[int]()
    with Watchdog(0, 1, None).over(tmp_path, lambda: told.append(1)):
        time.sleep(0.1)
        assert not told
        parents.append(1)
        if started_by_torchrun:
            until(lambda: told)
        time.sleep(0.1)
    assert told == [1] * started_by_torchrun


def test_stacks_of_other_ranks_stay_and_a_folder_that_cannot_be_is_no_trouble(
    tmp_path: Path,
) -> None:
    others = tmp_path / "stacks" / "rank-00001.txt"
    others.parent.mkdir()
    others.write_text("where it hung")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with Watchdog(0, 1, None).over(tmp_path, pytest.fail):
        assert others.with_name("rank-00000.txt").exists()
    assert [path.name for path in others.parent.iterdir()] == [others.name]
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / "file").touch()
    with Watchdog(0, 1, None).over(tmp_path / "file", pytest.fail):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_stacks_are_not_written_behind_a_link_and_a_pipe_is_not_waited_for(
    kind: str, tmp_path: Path
) -> None:
    path, mine = tmp_path / "stacks" / "rank-00000.txt", tmp_path / "mine"
    path.parent.mkdir()
    mine.write_text("mine")
    if kind == "link":
        path.symlink_to(mine)
    else:
        os.mkfifo(path)
    with Watchdog(0, 1, None).over(tmp_path, pytest.fail):
        assert path.is_file()
        assert not path.is_symlink()
    assert mine.read_text() == "mine"


def test_the_stacks_of_all_threads_are_written_on_demand_and_nothing_otherwise(
    tmp_path: Path,
) -> None:
    alone, ended, stacks = Watchdog(0, 1, None), threading.Event(), tmp_path / "stacks"
    with alone.over(tmp_path, pytest.fail):
        assert (stacks / "rank-00000.txt").exists()
    assert not stacks.exists()

    def waits_in_a_thread() -> None:
        ended.wait()

    thread = threading.Thread(target=waits_in_a_thread)
    thread.start()
    with alone.over(tmp_path, pytest.fail):
        alone.dump()
        os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + 60
        while stacks.joinpath("rank-00000.txt").read_text().count("waits_in_a_thread") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    ended.set()
    thread.join()
    assert (stacks / "rank-00000.txt").read_text().count("test_the_stacks_of_all_threads") == 2


def test_a_rank_that_does_nothing_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    alone, told = Watchdog(0, 1, None, timeout_s=0.1), ""
    deadline = time.monotonic() + 60
    with alone.over(tmp_path, pytest.fail):
        for step in (3, 4):
            alone.beat(step)
            while f"nothing for 0.1 s after step {step}; see {tmp_path}" not in told:
                assert time.monotonic() < deadline
                time.sleep(0.05)  # several looks
                told += capsys.readouterr().err
    assert (told + capsys.readouterr().err).count("nanogpt: rank 0: nothing for") == 2


def test_a_wait_takes_little_of_a_core() -> None:
    alone, end = Watchdog(0, 1, None), time.monotonic() + 1
    before = time.process_time()
    alone.wait(lambda: time.monotonic() > end)
    assert time.process_time() - before < 0.2  # 0.03 s where nobody else is at work
