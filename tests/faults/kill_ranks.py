"""A campaign, not a test: a training whose ranks are killed (SIGKILL) again and again, and that
ends all the same.

    python tests/faults/kill_ranks.py --kills 10 --seed 1

`nanogpt launch --max-restarts 3` starts the ranks again; its weights and moments have to equal
those of an undisturbed run by sha256. A kill comes at a random time after the run has saved
something new. Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.faults.trainings import Training, prepare


def kill_one(training: Training, choose: random.Random) -> bool:
    """Kill a random rank once the run has a checkpoint that it had not; False if it ended
    before.
    """
    before, deadline = training.newest_step(), time.monotonic() + 120
    while training.newest_step() <= before:
        assert time.monotonic() < deadline, "no new checkpoint in two minutes"
        if not training.living():
            return False
        time.sleep(0.05)
    time.sleep(choose.uniform(0, 1))
    ranks = training.ranks()
    if len(ranks) < 2 or training.newest_step() >= training.updates:
        return False
    with suppress(ProcessLookupError):
        os.kill(choose.choice(ranks), signal.SIGKILL)
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--optimizer", default="adamw")
    given = parser.parse_args()
    choose = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        more = ("--strategy", given.strategy, "--optimizer", given.optimizer)
        whole = Training(folder, "whole", given.updates, 10**6, [], *more)
        if whole.start().wait():
            sys.exit("the undisturbed run failed")
        training = Training(folder, "killed", given.updates, 20, ["--max-restarts", "3"], *more)
        process, kills, started = training.start(), 0, time.monotonic()
        while kills < given.kills and process.poll() is None:
            kills += kill_one(training, choose)
        code = process.wait(timeout=600)
        assert process.stderr is not None
        told = process.stderr.read().splitlines()
        figures = {
            "kills": kills,
            "seed": given.seed,
            "strategy": given.strategy,
            "optimizer": given.optimizer,
            "code": code,
            "seconds": round(time.monotonic() - started, 1),
            "equal": code == 0 and training.tensors() == whole.tensors(),
            "left_over": len(training.living()),
            "restarts_of_torchrun": sum("starting again" in line for line in told),
            "named": sum("lost rank" in line or "was killed by SIGKILL" in line for line in told),
        }
    print(json.dumps(figures))
    sys.exit(not figures["equal"] or figures["left_over"] > 0)


if __name__ == "__main__":
    main()
