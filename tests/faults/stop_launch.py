"""A campaign, not a test: SIGTERM to the launcher of a training at random moments, until it has
ended.

    python tests/faults/stop_launch.py --stops 20 --seed 1

Each stop ends with 75, within the time for saving, leaves no process, and the next start goes on;
the weights and moments in the end equal those of an undisturbed run by sha256. Prints one JSON
object.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import itertools

from tests.faults.trainings import Training, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--updates", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signal", default="SIGTERM")
    parser.add_argument("--latest", type=float, default=12.0, help="seconds after the start")
    given = parser.parse_args()
    choose, number = random.Random(given.seed), signal.Signals[given.signal]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        whole = Training(folder, "whole", given.updates, 10**6, [])
        if whole.start().wait():
            sys.exit("the undisturbed run failed")
        training = Training(folder, "stopped", given.updates, 10**6, [])
        codes: Counter[int] = Counter()
        steps, seconds, left_over = [0], [], 0
        for _ in range(given.stops):
            process = training.start()
            time.sleep(choose.uniform(0, given.latest))
            process.send_signal(number)
            asked = time.monotonic()
            codes[process.wait(timeout=120)] += 1
            seconds.append(time.monotonic() - asked)
            left_over += len(training.living())
            steps.append(training.newest_step())
        assert training.start().wait() == 0
        figures = {
            "stops": given.stops,
            "seed": given.seed,
            "signal": given.signal,
            "codes": dict(codes),
            "before_the_first_update": sum(a == b for a, b in itertools.pairwise(steps)),
            "slowest_s": round(max(seconds), 1),
            "went_back": sum(a > b for a, b in itertools.pairwise(steps)),
            "left_over": left_over,
            "equal": training.tensors() == whole.tensors(),
        }
    print(json.dumps(figures))
    sys.exit(not figures["equal"] or left_over > 0 or set(codes) - {0, 75} != set())


if __name__ == "__main__":
    main()
