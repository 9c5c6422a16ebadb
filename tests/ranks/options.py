"""Run under torchrun by test_strategy.py: `options.py FOLDER CORPUS`, a model with every option,
by each strategy.

Each trains to FOLDER/STRATEGY/plain, fsdp once more with a stop on the way to …/resumed; what the
checkpoint FOLDER/single/plain evaluates to by each goes to FOLDER/loaded.json.
"""

import json
import sys
from pathlib import Path

import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.plan import fit_to_data, read_plan
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ALL_OPTIONS, tiny
from tests.ranks import leave

STEPS, HALF = 6, 3
COMMON = {
    **ALL_OPTIONS,
    "n_layer": 3,
    "gradient_accumulation_steps": 4,
    "batch_size": 1,
    "max_iters": STEPS,
    "lr_decay_iters": STEPS,
    "eval_interval": HALF,
    "log_interval": 1,
    "learning_rate": 0.01,
    "warmup_iters": 0,
}
STRATEGIES = {"ddp": {"strategy": "ddp"}, "fsdp": {"strategy": "fsdp"}}
RECOMPUTING = {"strategy": "fsdp", "activation_checkpointing": "full", "dropout": 0.0}


def loaded(world: World, folder: Path, corpus: Path, given: dict[str, object]) -> float:
    """The val loss of the checkpoint that one process has left, in this layout."""
    data = DataFolder.open(corpus)
    config = fit_to_data(tiny(corpus, folder / "none", **COMMON, **given), data)
    layout = plan_layout(config, world, training_bytes(config))
    train_step = TrainStep(config, world, layout, torch.float32)
    _, evaluator = read_plan(config, data, world, layout, torch.float32)
    saved = folder / "single" / "plain" / "checkpoints" / storage.step_name(STEPS)
    _, facts = checkpoint.load_state(saved)
    train_step.load(saved, facts)
    return train_step.evaluate(evaluator).val_loss


def main(world: World, folder: Path, corpus: Path) -> None:
    losses = {}
    for name, given in STRATEGIES.items():
        train(tiny(corpus, folder / name / "plain", **COMMON, **given), world, StopRequest())
        losses[name] = loaded(world, folder, corpus, given)
    for until in (HALF, STEPS):
        changes = {**COMMON, "strategy": "fsdp", "max_iters": until}
        train(tiny(corpus, folder / "fsdp" / "resumed", **changes), world, StopRequest())
    config = tiny(corpus, folder / "recomputing" / "plain", **COMMON, **RECOMPUTING)
    train(config, world, StopRequest())
    if world.is_rank0:
        (folder / "loaded.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect("cpu", timeout_s=60, group=True) as world:
        main(world, Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
