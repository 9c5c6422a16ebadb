"""Run under torchrun by test_parallel.py: bytes of this rank's share of the training state, as JSON
in FOLDER.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import connect
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory behind tensors, of which several may lie in one buffer."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(
        {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in local)}.values()
    )


if __name__ == "__main__":
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    with connect("cpu", timeout_s=60, group=True) as world:
        config = tiny(
            folder,
            folder / "run",
            strategy=strategy,
            n_layer=4,
            n_embd=64,
            vocab_size=1000,
            n_head=4,
        )
        train_step = TrainStep(
            config, world, plan_layout(config, world, training_bytes(config)), torch.float32
        )
        rows = torch.zeros(2, config.block_size, dtype=torch.int64).numpy()
        train_step.step(0, [(rows, rows)] * 2)  # AdamW has its moments now
        with_gradients: list[Tensor] = []
        train_step.optimizer.step = lambda: with_gradients.extend(  # type: ignore[method-assign,assignment]
            p.grad for p in train_step.model.parameters() if p.grad is not None
        )
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            train_step.step(1, [(rows, rows)] * 4)
        calls = {event.key: event.count for event in profiler.key_averages()}
        moments = [
            value for state in train_step.optimizer.state.values() for value in state.values()
        ]
        sums = {
            "parameters": local_bytes(train_step.model.parameters()),
            "gradients": local_bytes(with_gradients),
            "moments": local_bytes(moments),
            "reductions": calls.get("c10d::_reduce_scatter_base_", 0),
            "groups": 1 + len(train_step.model.transformer.h),
            "total": 16 * train_step.model.num_params(),
        }
        (folder / f"memory-{strategy}-{world.size}-{world.rank}.json").write_text(json.dumps(sums))
    leave()
