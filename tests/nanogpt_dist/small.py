"""Runs that take a moment: what the tests of training, saving and resuming share."""

import json
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.world import World
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage.events import EVENTS
from nanogpt_dist.storage.json_lines import JsonLines
from nanogpt_dist.training.loop import Result, train
from tests.conftest import TINY

ONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), backend=None)
STEPS = 24  # of the runs below; they save every 4
# every option of the model beside GPT-2 at once
ALL_OPTIONS: dict[str, Any] = {
    "rotary": True,
    "norm": "rmsnorm",
    "norm_weights": False,
    "embedding_norm": True,
    "init": "fan_in",
    "zero_init": True,
    "logit_softcap": 15.0,
    "residual_scalars": True,
    "smear": True,
    "bigram_rows": 1000,
    "value_embeddings": True,
    "sliding_window": 5,
    "window_pattern": "SL",
    "mlp": "relu2",
    "qk_norm": True,
    "n_kv_head": 1,
    "tied_head": False,
    "intra_document": True,
}


def tiny(corpus: Path, run: Path, **changes: object) -> TrainConfig:
    names = (name.removeprefix("--").replace("-", "_") for name in TINY[::2])
    flags = {name: parsed(value) for name, value in zip(names, TINY[1::2], strict=True)}
    common = {
        "dataset": str(corpus),
        "out_dir": str(run),
        "max_iters": 8,
        "eval_interval": 4,
        "tensorboard": False,
    }
    return resolve({**flags, **common, **changes})


def parsed(value: str) -> object:
    """A flag's value as the command line gives it to the config: a number where it is one."""
    try:
        return float(value) if {".", "e"} & set(value) else int(value)
    except ValueError:
        return value


def go(
    config: TrainConfig,
    fresh: bool = False,
    stop: StopRequest | None = None,
    branch_from: Path | None = None,
) -> Result:
    return train(config, ONE, StopRequest() if stop is None else stop, fresh, branch_from)


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events_of(run: Path) -> list[dict[str, Any]]:
    """What its events.jsonl holds, torn lines left out."""
    return JsonLines(run / EVENTS).read()


def weights_sha256(run: Path, step: int = STEPS) -> str:
    return storage.sha256_file(run / "checkpoints" / storage.step_name(step) / "model.safetensors")
