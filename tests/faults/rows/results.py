"""What is computed wrongly: gradients, losses, bits; and other numbers of ranks."""

import json
import random
from pathlib import Path

from nanogpt_dist.storage.events import EVENTS
from tests.faults import checks, commands, hooks, prepared
from tests.faults.row import Row
from tests.faults.rows.kills import LINE, at_a_moment


def no_finite_gradient(choose: random.Random, folder: Path) -> None:
    """NaN in a gradient of one rank: the step changes no weight on any, and is told of."""
    (folder / "data").symlink_to(prepared.data() / "data")
    step, rank = choose.randint(2, 11), choose.randrange(2)

    def before(each: int) -> None:
        if each == rank:
            hooks.no_finite_gradient_at(step - 1)

    line = [*LINE, "--max-iters", "12", "--save-interval", "1", "--keep-checkpoints", "20"]
    done = commands.run(*line, folder=folder, ranks=2, before=before)
    assert f"step {step} skipped, its gradient's norm is nan" in done.stderr, done.stderr[-500:]
    # nothing is saved after a step that was left out
    assert checks.steps(folder / "out") == [each for each in range(12, 0, -1) if each != step]
    events = [json.loads(line) for line in (folder / "out" / EVENTS).read_text().splitlines()]
    told = [event for event in events if event["event"] == "skip"]
    assert [event["step"] for event in told] == [step], told
    assert told[0]["documents"], "no document is named"
    checks.all_good(folder / "out")


def flipped_bit(choose: random.Random, folder: Path) -> None:
    """A bit of a weight or moment flips on one of three ranks: it is named, and nothing saved."""
    (folder / "data").symlink_to(prepared.data() / "data")
    step, rank = choose.randint(5, 11), choose.randrange(3)
    seed = choose.random()

    def before(each: int) -> None:
        if each == rank:
            hooks.flip_a_bit_after(step, random.Random(seed))

    line = [*LINE, "--batch-size", "2", "--gradient-accumulation-steps", "3"]
    line += ["--check-replicas-every", "1"]
    started = commands.start(*line, folder=folder, ranks=3, before=before)
    assert started.wait() == 65, (started.codes, started.stderr[-1000:])
    assert f"rank {rank} on " in started.stderr, started.stderr[-1000:]
    assert f"after step {step}" in started.stderr, started.stderr[-1000:]
    assert max(checks.steps(folder / "out")) < step
    checks.all_good(folder / "out")


def other_ranks(choose: random.Random, folder: Path) -> None:
    """Stop a run and go on with 1, 2 or 4 ranks, again and again: the losses are the same."""
    whole = prepared.trained_without_dropout()
    (folder / "data").symlink_to(whole / "data")
    line = [*LINE, "--dropout", "0"]
    for _ in range(2):
        started = commands.start(*line, folder=folder, ranks=choose.choice([1, 2, 4]))
        at_a_moment(choose, started, 2.0)
        started.kill()
    refused = commands.start(*line, folder=folder, ranks=3)
    assert refused.wait() in (2, 78), refused.stderr[-500:]
    commands.run(*line, folder=folder, ranks=choose.choice([1, 2, 4]))
    checks.same_losses(folder / "out", whole / "out")


ROWS = [
    Row(
        number=24,
        fault="NaN in a gradient of one rank",
        holds="the step changes no weight on any rank; it is told with its documents",
        goal=100,
        attempt=no_finite_gradient,
        short=1,
        tests=["tests/nanogpt_dist/training/test_step.py"],
    ),
    Row(
        number=25,
        fault="a spike: a poisoned batch, the rate × 100",
        holds="told in two steps; none in 10,000 clean steps; what is left out stays so",
        goal=1,
        tests=["tests/nanogpt_dist/training/test_spikes.py"],
    ),
    Row(
        number=26,
        fault="a bit of a weight or moment flips on one rank",
        holds="that rank is named, nothing is saved, 65",
        goal=100,
        attempt=flipped_bit,
        short=2,
        tests=["tests/nanogpt_dist/training/test_replicas.py"],
    ),
    Row(
        number=36,
        fault="out of memory in `train`",
        holds="one line says what to type; with `auto` it goes on",
        goal=1,
        tests=["tests/nanogpt_dist/training/test_out_of_memory.py"],
    ),
    Row(
        number=37,
        fault="killed, and on with another number of ranks",
        holds="each step comes to the same loss, to 1e-5; numbers that do not divide are refused",
        goal=50,
        attempt=other_ranks,
        short=1,
    ),
    Row(
        number=46,
        fault="a crash at the same step each time",
        holds="steps back once, then ends with 78, after 4 attempts at most",
        goal=1,
        tests=["tests/nanogpt_dist/training/test_crash_loops.py"],
    ),
]
