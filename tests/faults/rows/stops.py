"""Runs that are asked to stop: SIGTERM, Ctrl-C, once and twice, whatever they do meanwhile."""

import random
import signal
import time
from pathlib import Path

from tests.faults import checks, commands, prepared
from tests.faults.row import Row
from tests.faults.rows.kills import LINE, at_a_moment, until


def terminated(choose: random.Random, folder: Path) -> float:
    """SIGTERM to one rank or all: both save the same step and return 75; seconds until then."""
    whole = prepared.trained_by_two()
    (folder / "data").symlink_to(whole / "data")
    started = commands.start(*LINE, folder=folder, ranks=2)
    at_a_moment(choose, started)
    start = time.monotonic()
    started.send(signal.SIGTERM, choose.choice([None, 0, 1]))
    until(lambda: started.poll() or any(started.codes.values()))
    time.sleep(1)
    if not started.poll() and not (folder / "out").exists():
        started.send(signal.SIGTERM)  # as torchrun does where a rank ends before all have met
    until(started.poll)
    seconds = time.monotonic() - start
    codes = set(started.codes.values())
    begun = (folder / "out" / "metrics.jsonl").exists()
    assert codes in ({0}, {75}) or (codes <= {74, 75, -15} and not begun), (
        started.codes,
        started.stderr[-500:],
    )
    checks.clean(started.stderr)
    if codes == {75} and begun:
        logged = checks.losses(folder / "out")
        newest = max(checks.steps(folder / "out"), default=0)
        assert not logged or newest == logged[-1][0], "not saved where it stopped"
    checks.all_good(folder / "out")
    commands.run(*LINE, folder=folder, ranks=2)
    checks.same_end(folder / "out", whole / "out", 24)
    return seconds


def interrupted(choose: random.Random, folder: Path) -> float:
    """Ctrl-C, perhaps a second one: no traceback, nothing lost; seconds until the prompt."""
    whole = prepared.trained()
    (folder / "data").symlink_to(whole / "data")
    started = commands.start(*LINE, folder=folder)
    at_a_moment(choose, started, 1.5)
    start = time.monotonic()
    started.send(signal.SIGINT)
    if choose.random() < 0.5:
        time.sleep(choose.uniform(0, 1.5))
        if not started.poll():
            started.send(signal.SIGINT)
    until(started.poll)
    seconds = time.monotonic() - start
    assert started.codes[0] in (0, 75, 130, -2), (started.codes, started.stderr[-500:])
    checks.clean(started.stderr)
    checks.all_good(folder / "out")
    commands.run(*LINE, folder=folder)
    checks.same_end(folder / "out", whole / "out", 24)
    return seconds


ROWS = [
    Row(
        number=8,
        fault="SIGTERM to one rank or all, as before a preemption",
        holds="all save the step they are at and return 75; the run ends with the same bits",
        goal=50,
        attempt=terminated,
        short=2,
        tests=["tests/launch/test_launch.py", "tests/launch/test_slurm_batch.py"],
    ),
    Row(
        number=9,
        fault="Ctrl-C, once or twice",
        holds="no traceback; the run ends with the same bits",
        goal=50,
        attempt=interrupted,
        short=2,
    ),
]
