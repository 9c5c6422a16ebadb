"""Processes that are killed: of a preparation, of a training, one of several ranks."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from nanogpt_dist import storage
from tests.conftest import hashes
from tests.faults import checks, commands, prepared
from tests.faults.commands import Started
from tests.faults.row import Row

SECONDS = 2.5  # that an undisturbed run takes here, nearly
LINE = ["train", "--dataset", "data", "--out-dir", "out", *prepared.STEPS_24]
ON = ["--max-iters", "1000000", "--eval-interval", "1000000", "--save-interval", "5"]  # and on


def at_a_moment(choose: random.Random, started: Started, seconds: float = SECONDS) -> None:
    """Wait for a random moment within `seconds`, or the end of the command."""
    deadline = time.monotonic() + choose.uniform(0.0, seconds)
    while time.monotonic() < deadline and not started.poll():
        time.sleep(0.002)


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `what` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def has_logged(folder: Path, step: int) -> Callable[[], bool]:
    """Whether the run FOLDER/out has logged `step`."""
    record = folder / "out" / "metrics.jsonl"
    return lambda: record.exists() and f'"step": {step},'.encode() in record.read_bytes()


def prepare_killed(choose: random.Random, folder: Path) -> None:
    """Kill a preparation with two workers, or two ranks; the next one redoes no unit."""
    whole = prepared.texts()
    line = ["prepare", "text", "--source", str(whole / "texts.jsonl"), "--tokenizer", "byte"]
    line += ["--out", "out", "--workers", "2"]
    units = folder / "out" / ".prepare" / "units"
    started = commands.start(*line, folder=folder, ranks=choose.choice([0, 2]))
    at_a_moment(choose, started, 1.2)
    started.kill()
    done = {path.name: path.stat().st_mtime_ns for path in units.glob("[0-9]*.json")}
    again = commands.start(*line, folder=folder, ranks=choose.choice([0, 2]))
    while not again.poll():
        for path in units.glob("[0-9]*.json"):
            assert done.get(path.name, 0) in (0, modified(path)), f"{path.name} was done twice"
        time.sleep(0.005)
    assert again.wait() == 0, again.stderr[-500:]
    assert hashes(folder / "out") == hashes(whole / "out"), "other bytes"


def modified(path: Path) -> int:
    """When; 0 where it is gone by now."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def train_killed(choose: random.Random, folder: Path) -> None:
    """Kill both ranks of a training at a random moment, let it go on, compare the end."""
    whole = prepared.trained_by_two()
    (folder / "data").symlink_to(whole / "data")
    started = commands.start(*LINE, folder=folder, ranks=2)
    at_a_moment(choose, started)
    started.kill()
    before = max(checks.steps(folder / "out"), default=0)
    again = commands.run(*LINE, folder=folder, ranks=2)
    if before:
        told = f"from {storage.step_name(before)}" if before < 24 else "is finished"
        assert told in again.stderr, f"it did not go on from step {before}: {again.stderr[-500:]}"
    checks.same_end(folder / "out", whole / "out", 24)


def rank_killed(choose: random.Random, folder: Path) -> float:
    """Kill one of two ranks: the other names it and leaves; seconds until then."""
    (folder / "data").symlink_to(prepared.data() / "data")
    started = commands.start(*LINE, *ON, folder=folder, ranks=2)
    until(has_logged(folder, choose.randint(1, 20)))
    rank = choose.randrange(2)
    start = time.monotonic()
    started.send(signal.SIGKILL, rank)
    until(started.poll)
    seconds = time.monotonic() - start
    assert started.codes[1 - rank] == 74, started.codes
    assert f"lost rank {rank} (pid {started.pids[rank]}), which has died" in started.stderr
    checks.clean(started.stderr)
    checks.all_good(folder / "out")
    assert seconds <= 10, f"the other left after {seconds:.1f} s"
    return seconds


def ranks_lost(choose: random.Random, folder: Path) -> float:
    """Kill some of four ranks, go on with fewer: each step reads what it would have read."""
    whole = prepared.trained_without_dropout()
    (folder / "data").symlink_to(whole / "data")
    line = [*LINE, "--dropout", "0"]
    started = commands.start(*line, folder=folder, ranks=4)
    logged = has_logged(folder, choose.randint(1, 20))
    until(lambda: logged() or started.poll())
    start = time.monotonic()
    for rank in choose.choice([(0, 1), (2, 3), (1,), (0, 3)]):
        started.send(signal.SIGKILL, rank)
    until(started.poll)
    seconds = time.monotonic() - start
    commands.run(*line, folder=folder, ranks=choose.choice([1, 2]))
    checks.same_losses(folder / "out", whole / "out")
    return seconds


def second_run(choose: random.Random, folder: Path) -> float:
    """Start a run twice: the second is refused; when the first is killed, a third goes on."""
    whole = prepared.trained()
    (folder / "data").symlink_to(whole / "data")
    first = commands.start(*LINE, folder=folder)
    until(lambda: (folder / "out" / "run.json").exists())
    at_a_moment(choose, first, 0.5)
    start = time.monotonic()
    second = commands.start(*LINE, folder=folder)
    code = second.wait()
    seconds = time.monotonic() - start
    if code == 0:  # the first had ended by then
        assert "out is finished" in second.stderr, second.stderr[-500:]
    else:
        assert code == 73, second.stderr[-500:]
        assert f"process {first.pids[0]} on " in second.stderr, second.stderr[-500:]
    first.kill()
    commands.run(*LINE, folder=folder)
    checks.same_end(folder / "out", whole / "out", 24)
    return seconds


ROWS = [
    Row(
        number=1,
        fault="SIGKILL anywhere in `prepare`",
        holds="the next run goes on, does no unit twice, and comes to the same bytes",
        goal=200,
        attempt=prepare_killed,
        short=3,
    ),
    Row(
        number=2,
        fault="SIGKILL anywhere in `train`, 2 ranks",
        holds="the run goes on from its newest checkpoint and ends with the same bits",
        goal=200,
        attempt=train_killed,
        short=3,
    ),
    Row(
        number=5,
        fault="one rank dies",
        holds="the others name it and leave with 74, within 10 s",
        goal=50,
        attempt=rank_killed,
        short=1,
        tests=["tests/nanogpt_dist/distributed/test_watchdog.py"],
    ),
    Row(
        number=6,
        fault="a node is lost: some of 4 ranks die",
        holds="the rest leave; fewer ranks go on with the same batches",
        goal=20,
        attempt=ranks_lost,
        short=1,
        tests=["tests/launch/test_hosts.py"],
    ),
    Row(
        number=21,
        fault="two runs in one folder",
        holds="the second is refused and told by whom; after SIGKILL the folder is free",
        goal=50,
        attempt=second_run,
        short=1,
        tests=["tests/nanogpt_dist/storage/test_runlock.py"],
    ),
]
