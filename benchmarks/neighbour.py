"""Sampling and training alone, and beside one process that is always busy, by how OpenMP's threads
wait for each other: tokens per second, and what is kept of them.

    python benchmarks/neighbour.py               # --spins 300000 nanogpt 0 1000 --rounds 5

Each way to wait is a process of its own that keeps its model, and they take turns: A alone, A
beside the neighbour, B alone, …, once nobody else computes. 300000: libgomp as it comes, another
number: that GOMP_SPINCOUNT; nanogpt: what nanogpt_dist/waiting.py makes of it. A turn counts only
where all other processes together took less than --others of the cores; after --tries turns the
least disturbed one counts, and `others` says by how much it was. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import machine, ratio, report

TICKS = os.sysconf("SC_CLK_TCK")
PAUSE = 0.3  # seconds that a look at the other processes takes
BUSY = "while True: pass"
# the prompt's tokens and new ones of a turn; steps of a turn
PROMPT, NEW, STEPS = 64, 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", default=["sample", "train"], choices=list(WORK))
    parser.add_argument("--spins", nargs="+", default=["300000", "nanogpt", "0", "1000"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=float, default=0.05, help="of the cores, at most")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for quiet")
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    rows: list[dict[str, object]] = []
    for what in given.what:
        rows += compare(what, given)
    report(rows, machine=machine("torch"), cores=cores())


def compare(what: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each way to wait: the share that is kept beside the neighbour."""
    workers = {spin: Worker(what, spin) for spin in given.spins}
    turns: dict[str, dict[str, list[Turn]]] = {
        spin: {"alone": [], "beside": []} for spin in workers
    }
    for number in range(-1, given.rounds):
        for spin, worker in workers.items():
            for place, neighbour in (("alone", False), ("beside", True)):
                turn = quiet(lambda: worker.turn(neighbour), given)  # noqa: B023
                if number >= 0:
                    turns[spin][place].append(turn)
                    told = f"{what}, {spin}, {place}: {turn.speed:.4g} tokens/s"
                    print(f"{told}, others {turn.others:.0%}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.close()
    first = next(iter(turns.values()))["alone"]
    return [
        {
            "what": f"{what}, waiting: {spin}",
            "beside": "itself without the neighbour",
            **ratio(speeds(places["beside"]), speeds(places["alone"])),
            f"alone_beside_{given.spins[0]}": ratio(speeds(places["alone"]), speeds(first))[
                "ratio"
            ],
            "tokens_per_second": {
                place: round(statistics.median(speeds(taken)), 2) for place, taken in places.items()
            },
            "others": {
                place: round(statistics.median(turn.others for turn in taken), 3)
                for place, taken in places.items()
            },
        }
        for spin, places in turns.items()
    ]


@dataclass(frozen=True)
class Turn:
    """Tokens per second, and the share of all cores that third processes took meanwhile."""

    speed: float
    others: float


def speeds(turns: list[Turn]) -> list[float]:
    return [turn.speed for turn in turns]


def quiet(measure: Callable[[], Turn], given: argparse.Namespace) -> Turn:
    """The first turn that nobody disturbed, or the least disturbed one."""
    taken: list[Turn] = []
    while len(taken) < given.tries:
        wait_for_quiet(given)
        taken.append(measure())
        if taken[-1].others <= given.others:
            break
    return min(taken, key=lambda turn: turn.others)


def wait_for_quiet(given: argparse.Namespace) -> None:
    """Return once nobody is at work, or after given.patience seconds."""
    until = time.perf_counter() + given.patience
    while time.perf_counter() < until:
        before = busy_seconds()
        time.sleep(PAUSE)
        if busy_seconds() - before <= given.others * PAUSE * cores():
            return


class Worker:
    """A process that makes a turn of its work whenever it is asked to."""

    def __init__(self, what: str, spin: str) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        }
        line = [sys.executable, __file__, "--work", what]
        if spin != "nanogpt":
            environment["GOMP_SPINCOUNT"] = spin
        self._process = subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, neighbour: bool) -> Turn:
        busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if neighbour else []
        try:
            if busy:
                time.sleep(0.2)  # it is busy by now
            ours = [self._process.pid, *(other.pid for other in busy)]
            before, began = busy_seconds() - seconds_of(ours), time.perf_counter()
            told = self._ask()
            others = busy_seconds() - seconds_of(ours) - before
            share = others / (time.perf_counter() - began) / cores()
        finally:
            for other in busy:
                other.kill()
                other.wait()
        return Turn(told["tokens"] / told["seconds"], max(0.0, share))

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def cores() -> int:
    return os.cpu_count() or 1


def busy_seconds() -> float:
    """Seconds that all cores together have been at work since the machine was started."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS


def seconds_of(pids: list[int]) -> float:
    """Seconds of processor time that these processes have had."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS


def work(what: str) -> None:
    """Make a turn for each line of standard input; print what it took."""
    turn = WORK[what]()
    turn()
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = turn()
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - began}), flush=True)


def sample() -> Callable[[], int]:
    """Draw from GPT-2 124M with random weights, in the format that the machine is fastest in."""
    import torch

    from nanogpt_dist.generation.decoder import Decoder, pick_weights
    from nanogpt_dist.generation.sampling import Settings, generate
    from nanogpt_dist.load_config import load
    from nanogpt_dist.model.gpt import GPT

    config = load("gpt2-124m")
    model = GPT(config.architecture()).init_weights(0).eval()
    assert config.vocab_size is not None
    decoder = Decoder(
        model, config.vocab_size, pick_weights("auto", torch.device("cpu"), greedy=False)
    )
    prompt = torch.randint(config.vocab_size, (PROMPT,)).tolist()
    settings = Settings(max_new_tokens=NEW, seed=0)
    return lambda: sum(1 for _ in generate(decoder, [prompt], settings, range(1)))


def train() -> Callable[[], int]:
    """Steps of the preset quickstart, on random ids."""
    import torch

    from nanogpt_dist.bench.train import WINDOWS, RandomIds, wait_for
    from nanogpt_dist.data.batches import Prefetcher
    from nanogpt_dist.devices import pick_dtype, set_up
    from nanogpt_dist.distributed.strategy import plan_layout
    from nanogpt_dist.distributed.world import World
    from nanogpt_dist.load_config import load
    from nanogpt_dist.training.optim import training_bytes
    from nanogpt_dist.training.plan import plan_batches
    from nanogpt_dist.training.step import TrainStep
    from nanogpt_dist.transfers import stager

    config = load("quickstart")
    assert config.vocab_size is not None
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), backend=None)
    set_up(world.device, config.dtype, deterministic=False)
    layout = plan_layout(config, world, training_bytes(config))
    step = TrainStep(config, world, layout, pick_dtype(config.dtype, world.device))
    ids = RandomIds(WINDOWS * config.block_size + 1, config.vocab_size)
    batches = plan_batches(config, ids, "random", world, layout)
    prefetcher, made = Prefetcher(batches, stager(world.device)), [0]

    def turn() -> int:
        for _ in range(STEPS):
            result = step.step(made[0], prefetcher.get(made[0]))
            made[0] += 1
        wait_for(result)
        return STEPS * config.ramp.at(0).tokens

    return turn


WORK: dict[str, Callable[[], Callable[[], int]]] = {"sample": sample, "train": train}


if __name__ == "__main__":
    main()
