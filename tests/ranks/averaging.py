"""Run under torchrun by test_ema.py: `averaging.py FOLDER CORPUS`, all strategies at this world
size.

Each trains a run with averaged weights to FOLDER/STRATEGY-SIZE/whole, one that is stopped and goes
on to …/resumed, and loads what any other left there: its loss of the averaged weights, before and
after one more step, goes to FOLDER/loaded-SIZE.json.
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
from tests.ranks.matrix import SHAPES, strategies

STEPS, HALF, DECAY = 6, 3, 0.8


def config_of(corpus: Path, run: Path, given: dict[str, object], until: int) -> TrainConfig:
    common = {"max_iters": until, "lr_decay_iters": STEPS, "eval_interval": HALF, "dropout": 0.1}
    return tiny(corpus, run, **SHAPES, **common, ema_decay=DECAY, **given)


def losses(folder: Path, corpus: Path, given: dict[str, object], world: World) -> dict[str, object]:
    """Of each run there, its averaged weights' loss, now and after another step."""
    data = DataFolder.open(corpus)
    config = fit_to_data(config_of(corpus, folder / "none", given, STEPS), data)
    layout = plan_layout(config, world, training_bytes(config))
    train_step = TrainStep(config, world, layout, torch.float32)
    batches, evaluator = read_plan(config, data, world, layout, torch.float32)
    found = {}
    for run in sorted(folder.glob("*-?")):
        saved = run / "whole" / "checkpoints" / storage.step_name(HALF)
        train_step.load(saved, checkpoint.load_state(saved)[1])
        before = train_step.evaluate_average(evaluator)
        train_step.step(HALF, list(batches.of(HALF)))
        after = train_step.evaluate_average(evaluator)
        assert before
        assert after
        found[run.name] = [before.val_loss, after.val_loss]
    return found


def main(world: World, folder: Path, corpus: Path) -> None:
    for name, given in strategies(world.size).items():
        run = folder / f"{name}-{world.size}"
        train(config_of(corpus, run / "whole", given, STEPS), world, StopRequest())
        for until in (HALF, STEPS):
            train(config_of(corpus, run / "resumed", given, until), world, StopRequest())
    loaded = {
        f"{run} by {name}": found
        for name, given in strategies(world.size).items()
        for run, found in losses(folder, corpus, given, world).items()
    }
    if world.is_rank0:
        (folder / f"loaded-{world.size}.json").write_text(json.dumps(loaded))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect("cpu", timeout_s=60, group=True) as world:
        main(world, Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
