"""Run under torchrun by test_step.py: `skipping.py FOLDER STRATEGY DTYPE OPTIMIZER`.

A gradient that is not finite, on the last rank alone, changes no bit on any of them.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import connect, local_part
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave


def bits(train_step: TrainStep) -> dict[str, Tensor]:
    """A copy of this rank's weights, moments and step counters."""
    weights = dict(train_step.model.named_parameters())
    names = {parameter: name for name, parameter in weights.items()}
    state = {
        f"{names[parameter]}.{key}": value
        for parameter, values in train_step.optimizer.state.items()
        for key, value in values.items()
    }
    return {
        name: local_part(value).detach().clone() for name, value in {**weights, **state}.items()
    }


if __name__ == "__main__":
    folder, strategy, dtype = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
    with connect("cpu", timeout_s=60, group=True) as world:
        config = tiny(
            folder, folder / "run", strategy=strategy, optimizer=sys.argv[4], vocab_size=257
        )
        layout = plan_layout(config, world, training_bytes(config))
        train_step = TrainStep(config, world, layout, dtype)
        generator = torch.Generator().manual_seed(world.rank)
        rows = torch.randint(0, 257, (2, config.block_size + 1), generator=generator).numpy()
        batches = [(rows[:, :-1], rows[:, 1:])] * 2

        assert all(train_step.step(step, batches).finite for step in range(2))
        before, scale = bits(train_step), train_step.scaler.get_scale()
        weight = train_step.model.transformer.ln_f.weight
        if world.rank == world.size - 1:
            # fsdp: a shard, after the reduction; ddp: what is reduced
            handle = (
                weight.register_post_accumulate_grad_hook(
                    lambda p: local_part(p.grad).fill_(math.inf)
                )
                if strategy == "fsdp"
                else weight.register_hook(lambda gradient: gradient * math.inf)
            )
        assert not train_step.step(2, batches).finite
        after = bits(train_step)
        assert before.keys() == after.keys()
        assert any(name.endswith(".exp_avg") for name in before)
        moved = [name for name in before if name.endswith(".momentum_buffer")]
        assert bool(moved) == (config.optimizer == "muon")
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert train_step.scaler.get_scale() == scale * (0.5 if dtype == torch.float16 else 1)

        if world.rank == world.size - 1:
            handle.remove()
        assert train_step.step(3, batches).finite
        last = bits(train_step)
        assert all(value == 3 for name, value in last.items() if name.endswith(".step"))
        assert not torch.equal(last["transformer.wte.weight"], before["transformer.wte.weight"])
    leave()
