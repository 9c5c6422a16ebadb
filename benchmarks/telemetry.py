"""What the telemetry takes of a training: runs with and without it in turns, as a ratio.

    python benchmarks/telemetry.py [--ranks 2] [--strategy fsdp] [--rounds 5]

Without it: OwnWork's marks, the shares and the vote's figures are left out, by the same program. A
small model, for which it is the largest share; every step is logged. Each round is one process per
rank that makes both kinds in turns; the figure is the median of the rounds' ratios. Where others
use the machine that is no finer than their share of it: what its own calls take is told, too, but
for OwnWork's marks and the vote, which waits for the other ranks in any case.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

STEPS, WARM = 60, 10
SETTINGS: dict[str, Any] = {
    **{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 320},
    **{"batch_size": 12, "gradient_accumulation_steps": 2, "device": "cpu", "dtype": "float32"},
    **{"log_interval": 1, "eval_interval": 10**6, "tensorboard": False, "warmup_iters": 5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if "RANK" in os.environ:
        rounds(given)
        return
    line = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    line += ["--nproc-per-node", str(given.ranks), __file__, *sys.argv[1:]]
    subprocess.run([sys.executable, *line], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def rounds(given: argparse.Namespace) -> None:
    from nanogpt_dist.config import resolve
    from nanogpt_dist.distributed.world import connect

    config = resolve({**SETTINGS, "strategy": given.strategy, "dataset": given.dataset})
    ratios, own, without = [], [], []
    with connect("cpu", 600, group=True) as world:
        for i in range(given.rounds):
            kinds = (True, False) if i % 2 else (False, True)
            told = {kind: seconds_of_a_step(config, world, kind) for kind in kinds}
            took = {kind: seconds for kind, (seconds, _) in told.items()}
            own.append(told[True][1])
            without.append(took[False])
            ratios.append(took[True] / took[False])
            if world.is_rank0:
                print(
                    f"round {i + 1}: {1e3 * took[False]:.2f} ms without, "
                    f"{1e3 * took[True]:.2f} ms with: {ratios[-1]:.4f}",
                    flush=True,
                )
    if world.is_rank0:
        calls_s, step_s = statistics.median(own), statistics.median(without)
        print(
            f"median ratio {statistics.median(ratios):.4f} on {world.size} ranks; "
            f"its own calls {1e6 * calls_s:.0f} µs a step, {calls_s / step_s:.3%}"
        )


def seconds_of_a_step(config: Any, world: Any, telemetry: bool) -> tuple[float, float]:
    """Seconds of a step, and of telemetry's own calls in it: medians after the first WARM ones."""
    from nanogpt_dist.signals import StopRequest
    from nanogpt_dist.training import loop as loop_module
    from nanogpt_dist.training.telemetry import Telemetry

    times: list[float] = []
    own: list[float] = []

    class Timed(Telemetry if telemetry else Nothing):  # type: ignore[misc]
        def vote(self, flags: list[bool], due: int | None) -> list[bool]:
            times.append(time.perf_counter())
            voted: list[bool] = super().vote(flags, due)
            return voted

        def add_step(self, *given: Any) -> None:
            own.append(-time.perf_counter())
            super().add_step(*given)
            own[-1] += time.perf_counter()

        def interval(self, step: int) -> Any:
            begun = time.perf_counter()
            found = super().interval(step)
            own[-1] += time.perf_counter() - begun
            return found

    known, loop_module.Telemetry = loop_module.Telemetry, Timed  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = world.broadcast_text(str(Path(folder) / "run"))
            changed = config.model_copy(update={"out_dir": run, "max_iters": STEPS})
            loop_module.train(changed, world, StopRequest())
    finally:
        loop_module.Telemetry = known  # type: ignore[misc]
    steps = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(steps[WARM:]), statistics.median(own[WARM:])


class Nothing:
    """Telemetry's place in the loop, where nothing is measured."""

    def __init__(self, train_step: Any) -> None:
        self.world, self.spending = train_step.world, contextlib.nullcontext

    def add_step(self, *_: Any) -> None:
        """Count nothing."""

    def vote(self, flags: list[bool], due: int | None) -> list[bool]:
        """As it was."""
        voted: list[bool] = self.world.any_of_each(*flags)
        return voted

    def interval(self, step: int) -> tuple[dict[str, Any], None]:
        """What the progress line reads."""
        shown = {"interval_s": 1.0, "data_s": 0.0, "communication_s": 0.0, "save_s": 0.0}
        return shown, None


if __name__ == "__main__":
    main()
