"""What ranks exchange in a step, as torch's profiler records it: elements, by operator.

Writes {strategy: {operator: elements}} as JSON to argv[1]; argv[2:]: ddp, fsdp, or a mesh, 2x2.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch

from nanogpt_dist.bench.train import RandomIds, wait_for
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data.batches import Prefetcher
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.plan import plan_batches
from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.transfers import stager

MICRO_BATCHES = 2
SETTINGS = {
    **{"vocab_size": 512, "n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 32},
    **{"batch_size": 2, "join_micro_batches": False, "cpu_fast": False},
    **{"device": "cpu", "dtype": "bfloat16"},
}
# the operand whose size counts: what is gathered, what is reduced and scattered
OPERANDS = {"c10d::_allgather_base_": 0, "c10d::_reduce_scatter_base_": 1}
FEW = 100  # losses, norms and votes, which are no gradients


def elements(strategy: str, world: World) -> dict[str, int]:
    """Elements of each operator in one step of rank 0."""
    way = {"mesh": strategy} if "x" in strategy else {"strategy": strategy}
    steps = MICRO_BATCHES * world.size
    config = TrainConfig(**SETTINGS, **way, gradient_accumulation_steps=steps)
    layout = plan_layout(config, world, training_bytes(config))
    train_step = TrainStep(config, world, layout, torch.bfloat16)
    batches = plan_batches(config, RandomIds(64 * 32 + 1, 512), "random", world, layout)
    with contextlib.closing(Prefetcher(batches, stager(world.device))) as prefetcher:
        for step in range(2):  # DDP orders its buckets after the first
            wait_for(train_step.step(step, prefetcher.get(step)))
        with torch.profiler.profile(record_shapes=True) as profile:
            wait_for(train_step.step(2, prefetcher.get(2)))
    found: dict[str, int] = {}
    reduced = False
    for event in profile.events():
        if event.name in OPERANDS:
            size = event.input_shapes[OPERANDS[event.name]]
            found[event.name] = found.get(event.name, 0) + size[0]
            # gloo reduces and scatters by way of an all-reduce
            reduced = event.name == "c10d::_reduce_scatter_base_"
        elif event.name == "gloo:all_reduce":
            [size] = event.input_shapes
            if not reduced and size and size[0] > FEW:
                found[event.name] = found.get(event.name, 0) + size[0]
            reduced = False
    return found


def main() -> None:
    out, *strategies = sys.argv[1:]
    with connect("cpu", 120, True, lambda *_: None) as world:
        found = {strategy: elements(strategy, world) for strategy in strategies}
        if world.is_rank0:
            Path(out).write_text(json.dumps(found))


main()
