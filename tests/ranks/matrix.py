"""Run under torchrun by test_strategy.py: `matrix.py train|load FOLDER CORPUS OPTIMIZER`, all
strategies at this world size.

train: a run of each to FOLDER/STRATEGY-SIZE/whole, and one that is stopped and goes on to
…/resumed. load: each checkpoint that any left, by each strategy; what it evaluates to goes to
FOLDER/loaded-SIZE.json.
"""

import json
import sys
from pathlib import Path

import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.plan import fit_to_data, read_plan
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave

STEPS, HALF = 20, 10
MESHES = {1: "1x1", 2: "2x1", 4: "2x2"}
SHAPES = {
    "n_layer": 3,
    "n_embd": 24,
    "n_head": 2,
    "gradient_accumulation_steps": 4,
    "batch_size": 2,
}


def strategies(size: int) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {"single": {"strategy": "single"}} if size == 1 else {}
    found |= {"ddp": {"strategy": "ddp"}, "fsdp": {"strategy": "fsdp"}}
    return found | {"hsdp": {"strategy": "fsdp", "mesh": MESHES[size]}}


def config_of(
    corpus: Path,
    run: Path,
    given: dict[str, object],
    dropout: float,
    until: int = STEPS,
) -> TrainConfig:
    common = {
        "max_iters": until,
        "lr_decay_iters": STEPS,
        "eval_interval": HALF,
        "log_interval": 1,
        "bias": True,
        "optimizer": sys.argv[4],
    }
    return tiny(corpus, run, **SHAPES, **common, dropout=dropout, **given)


def train_all(world: World, folder: Path, corpus: Path) -> None:
    for name, given in strategies(world.size).items():
        run = folder / f"{name}-{world.size}"
        train(config_of(corpus, run / "plain", given, 0.0), world, StopRequest())
        train(config_of(corpus, run / "whole", given, 0.1), world, StopRequest())
        for until in (HALF, STEPS):
            train(config_of(corpus, run / "resumed", given, 0.1, until), world, StopRequest())


def load_all(world: World, folder: Path, corpus: Path) -> None:
    loaded = {}
    for name, given in strategies(world.size).items():
        data = DataFolder.open(corpus)
        config = fit_to_data(config_of(corpus, folder / "none", given, 0.0), data)
        layout = plan_layout(config, world, training_bytes(config))
        train_step = TrainStep(config, world, layout, torch.float32)
        batches, evaluator = read_plan(config, data, world, layout, torch.float32)
        for run in sorted(folder.glob("*-?")):
            saved = run / "plain" / "checkpoints" / storage.step_name(HALF)
            _, facts = checkpoint.load_state(saved)
            train_step.load(saved, facts)
            loss = train_step.evaluate(evaluator).val_loss
            train_step.step(HALF, list(batches.of(HALF)))  # the moments matter here
            loaded[f"{run.name} by {name}"] = [loss, train_step.evaluate(evaluator).val_loss]
    if world.is_rank0:
        (folder / f"loaded-{world.size}.json").write_text(json.dumps(loaded))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect("cpu", timeout_s=60, group=True) as world:
        {"train": train_all, "load": load_all}[sys.argv[1]](
            world, Path(sys.argv[2]), Path(sys.argv[3])
        )
    leave()
