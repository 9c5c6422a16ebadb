"""Small trainings, their figures, and what a step may do."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.fakecuda.record import Happening
from tests.fork_server import Done

SIZE = ["--n-layer", 2, "--n-head", 2, "--n-embd", 32, "--block-size", 32]
SIZE += ["--vocab-size", 320]
BATCH = ["--batch-size", 2, "--gradient-accumulation-steps", 4]
STEPS = 6
TRAIN = [
    *("train", *SIZE, *BATCH, "--max-iters", STEPS, "--eval-interval", STEPS, "--eval-iters", 2),
    *("--log-interval", 1, "--learning-rate", "1e-2", "--min-lr", "1e-3", "--warmup-iters", 2),
    *("--no-tensorboard", "--timeout-s", 60, "--no-join-micro-batches"),
]

# Steps in which all is as ever: DDP orders its buckets in the first two, the last is evaluated.
PLAIN = (2, 3, 4)


def losses(run: Path) -> list[float]:
    """The loss of each step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint, whole or in parts (by file)."""
    found = {}
    for path in sorted((run / "checkpoints" / f"step-{step:08}").glob("*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    return found


def difference(one: Path, other: Path, step: int = STEPS) -> float:
    """The greatest difference of two runs' checkpoints, moments included."""
    a, b = weights(one, step), weights(other, step)
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def reads(happenings: list[Happening]) -> list[str]:
    """From where the host reads from the device."""
    return [each.where for each in happenings if each.kind in ("down", "item")]


def uploads(happenings: list[Happening]) -> list[Happening]:
    """Copies to the device."""
    return [each for each in happenings if each.kind == "up"]


def waits(happenings: list[Happening]) -> list[str]:
    """Where the host waits for the device; an event that is asked is no wait."""
    return [each.where for each in happenings if each.waits]


def plain_steps(done: Done, rank: int = 0) -> list[list[Happening]]:
    """What happened in the steps that are neither the first nor evaluated."""
    from tests.fakecuda.record import steps

    found = steps(done.of_rank(rank))
    return [found[step] for step in PLAIN]
