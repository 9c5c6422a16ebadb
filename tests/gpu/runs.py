"""Runs on the GPU, by the command line as users type it, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from tests.conftest import Run, hashes
from tests.gpu.machine import SIMULATED

# A model that is large enough for every kernel to be chosen as for GPT-2: heads of 64, bf16 tiles
# that are full. On a simulated device just a model.
SIZES = (
    {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 2}
    if SIMULATED
    else {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "batch_size": 8}
)
SETTINGS: dict[str, Any] = {
    **SIZES,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_iters": 2,
    "eval_iters": 2,
    "log_interval": 1,
    "keep_checkpoints": 100,
    "tensorboard": False,
    "device": "cuda",
}
STRATEGIES = ("single", "ddp", "fsdp")


def flags(**settings: Any) -> list[str]:
    """Settings as the command line takes them."""
    line: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            line += [f"--{flag}", str(value)]
    return line


def train_flags(corpus: Path, run: Path, **changes: Any) -> list[str]:
    """The arguments of a training of SETTINGS; it saves and evaluates at its end alone."""
    steps = changes.get("max_iters", 8)
    ends = {"max_iters": steps, "eval_interval": steps, "dataset": corpus, "out_dir": run}
    return ["train", *flags(**{**SETTINGS, **ends, **changes})]


def train(nanogpt: Run, corpus: Path, run: Path, **changes: Any) -> list[float]:
    """Train in a process of its own, to the end; the losses of its steps."""
    nanogpt(*train_flags(corpus, run, **changes))
    return losses(run)


def losses(run: Path) -> list[float]:
    """The loss of each step that a run has logged."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record]


def largest_difference(a: list[float], b: list[float]) -> float:
    """Between losses of the same steps."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def tensor_hashes(run: Path, step: int) -> dict[str, str]:
    """sha256 of the weights and moments of a checkpoint, by file."""
    folder = run / "checkpoints" / storage.step_name(step)
    return {name: each for name, each in hashes(folder).items() if name.endswith(".safetensors")}
