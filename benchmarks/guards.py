"""What the guards of a run take of a training: spike limits, digests, the look at the disk's room.

    python benchmarks/guards.py --dataset data/shakespeare-char [--ranks 2] [--rounds 5]

A model of 6 × 384 makes steps with the guards and without them, in turns, as a ratio of medians:
where others use the machine, no finer than their share of it. So the calls themselves are timed,
too, and told as a share of a step: limits and what is remembered of a step in each step, a digest
in one of --check-replicas-every steps, the room in each save.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

STEPS, WARM, EVERY = 40, 6, 10
SETTINGS: dict[str, Any] = {
    **{"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 320},
    **{"batch_size": 4, "gradient_accumulation_steps": 2, "device": "cpu", "dtype": "float32"},
    **{"log_interval": 10, "eval_interval": 10**6, "tensorboard": False, "warmup_iters": 5},
    **{"save_interval": EVERY, "keep_checkpoints": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ranks", type=int, default=2)
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

    config = resolve({**SETTINGS, "dataset": given.dataset})
    every = config.check_replicas_every
    ratios, calls, steps = [], Calls(), []
    with connect("cpu", 600, group=True) as world:
        for i in range(given.rounds):
            kinds = (True, False) if i % 2 else (False, True)
            took = {kind: seconds_of_a_step(config, world, kind, calls) for kind in kinds}
            ratios.append(took[True] / took[False])
            steps.append(took[False])
            if world.is_rank0:
                print(f"round {i + 1}: {1e3 * took[False]:.1f} ms a step, {ratios[-1]:.4f} with")
    if not world.is_rank0:
        return
    step = statistics.median(steps)
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.4f} on {world.size} ranks, {1e3 * step:.1f} ms a step")
    a_step = sum(calls.median(name) for name in ("limits", "remember"))
    digest = calls.median("compare")
    room = calls.median("room")
    print(f"limits and remembering: {1e6 * a_step:.0f} µs a step, {a_step / step:.3%}")
    print(f"a digest: {1e3 * digest:.2f} ms; of {every} steps one, {digest / every / step:.4%}")
    print(f"the room: {1e6 * room:.0f} µs a save, {room / step:.3%} of a step")
    print(f"in all {(a_step + digest / every + room) / step:.3%} with a save in each step")


class Calls:
    """The seconds that calls have taken, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time noted."""

        def timed(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self.seconds.setdefault(name, []).append(time.perf_counter() - begun)

        return timed

    def median(self, name: str) -> float:
        """Seconds of a call; 0 where there was none."""
        return statistics.median(self.seconds.get(name, [0.0]))


def seconds_of_a_step(config: Any, world: Any, guarded: bool, calls: Calls) -> float:
    """Seconds of a step: the median after the first WARM ones."""
    from nanogpt_dist import storage
    from nanogpt_dist.signals import StopRequest
    from nanogpt_dist.training import loop as loop_module
    from nanogpt_dist.training import spikes
    from nanogpt_dist.training.replicas import Replicas
    from nanogpt_dist.training.step import NO_LIMITS
    from nanogpt_dist.training.telemetry import Telemetry

    times: list[float] = []

    class Timed(Telemetry):
        def vote(self, flags: list[bool], due: int | None) -> list[bool]:
            times.append(time.perf_counter())
            return super().vote(flags, due)

    places: list[tuple[Any, str, str, Callable[..., Any]]] = [
        (loop_module, "limits", "limits", lambda state: NO_LIMITS),
        (spikes, "remember", "remember", lambda *_, **__: None),
        (Replicas, "compare", "compare", lambda *_: None),
        (storage, "require_room", "room", lambda *_: None),
    ]
    known = [(place, attribute, getattr(place, attribute)) for place, attribute, _, _ in places]
    for (place, attribute, name, nothing), (_, _, real) in zip(places, known, strict=True):
        setattr(place, attribute, calls.timed(name, real) if guarded else nothing)
    known.append((loop_module, "Telemetry", Telemetry))
    loop_module.Telemetry = Timed  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = world.broadcast_text(str(Path(folder) / "run"))
            every = EVERY if guarded else 0
            changed = {"out_dir": run, "max_iters": STEPS, "check_replicas_every": every}
            loop_module.train(config.model_copy(update=changed), world, StopRequest())
    finally:
        for place, attribute, real in known:
            setattr(place, attribute, real)
    return statistics.median(b - a for a, b in itertools.pairwise(times[WARM:]))


if __name__ == "__main__":
    main()
