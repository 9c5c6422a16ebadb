"""Run under torchrun by test_muon.py: `muon.py FOLDER`. Steps of Muon in each layout are those of
one process, where shards have not all as many rows, or none; each matrix is orthogonalized once.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist.distributed import dealing
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.strategy import whole
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.training import muon
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ONE, tiny
from tests.ranks import leave

STEPS = 4
BATCH = 12
# 3 rows of c_proj on three ranks; of 5 on three the last has one, of 4 on three none
SHAPES = {"n_layer": 2, "n_embd": 4, "n_head": 2, "mlp": "swiglu", "n_kv_head": 1, "vocab_size": 64}


def weights_after(folder: Path, world: World, layout: Layout, rank: int, size: int) -> list[Tensor]:
    """This one's gradients are of its own rows of the batch."""
    strategy, mesh = layout.strategy, None
    if strategy == "fsdp" and layout.replicate > 1:
        mesh = f"{layout.replicate}x{layout.shard}"
    config = tiny(folder, folder / "run", **SHAPES, strategy=strategy, mesh=mesh, optimizer="muon")
    train_step = TrainStep(config, world, layout, torch.float32)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, 64, (BATCH, config.block_size + 1), generator=generator)
        mine = rows.chunk(size)[rank].numpy()
        assert train_step.step(step, [(mine[:, :-1], mine[:, 1:])]).finite
    return [whole(p.detach()) for p in train_step.model.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect("cpu", timeout_s=60, group=True) as world:
        expected = weights_after(Path(sys.argv[1]), ONE, Layout("single", 1, 1), 0, 1)
        layouts = [Layout("ddp", world.size, 1), Layout("fsdp", 1, world.size)]
        layouts.append(Layout("fsdp", world.size, 1))
        if world.size == 4:  # both ways on one grid, in several rounds
            layouts = [Layout("fsdp", 2, 2)]
            dealing.MOST = 2 * 4 * 4
        made: list[int] = []
        plain = muon.orthogonalize

        def counted(matrices: Tensor, *given: Any) -> Tensor:
            made.append(matrices.size(0))
            return plain(matrices, *given)

        muon.orthogonalize = counted
        for layout in layouts:
            made.clear()
            found = weights_after(Path(sys.argv[1]), world, layout, world.rank, world.size)
            # of each block: q, k, v, c_proj, gate, value, c_proj
            assert sum(world.gather_ints(sum(made))) == STEPS * 2 * 7, layout
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
    leave()
