"""FSDP2: weights, gradients and optimizer state sharded; one group gathered at a time.

Imported only where a model is laid out in this way: what torch loads for it takes half a second.

Sources: Rajbhandari et al. 2020, "ZeRO", §5 (sharing out all three states); Zhao et al. 2023,
"PyTorch FSDP".
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.process_group import stdout_to_stderr
from nanogpt_dist.distributed.world import World
from nanogpt_dist.model.gpt import GPT

Sharder = Callable[[torch.nn.Module], None]


def sharder(
    config: TrainConfig,
    replicate: int,
    shard: int,
    world: World,
    dtype: torch.dtype,
) -> Sharder:
    """A function that shards one group of a model after the other; all ranks together.

    Each block, and last the model itself.

    As soon as a group has its values: so no rank ever holds more of the model than one group.
    """
    low = None if dtype == torch.float32 else dtype
    options: dict[str, Any] = {
        "mesh": _mesh(replicate, shard, world),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=torch.float32 if low else None
        ),
    }
    if config.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")

    def share_out(group: torch.nn.Module) -> None:
        is_root = isinstance(group, GPT)
        # The root is needed first in the backward pass: dropping it would only mean to gather it
        # again.
        fully_shard(
            group, reshard_after_forward=config.reshard_after_forward and not is_root, **options
        )
        if is_root:
            # The logits of a padded head are a view of a product's rows, which nothing of ours
            # changes in place.
            warnings.filterwarnings(
                "ignore", message=r"FSDP2-wrapped module .* returned a view tensor"
            )
            register_fsdp_forward_method(group, "logits")  # evaluation calls it

    return share_out


def _mesh(replicate: int, shard: int, world: World) -> DeviceMesh:
    """The ranks in `replicate` rows and `shard` columns.

    The ranks of a row, neighbours, hold one copy together.
    """
    kind = world.device.type
    if replicate == 1:
        return DeviceMesh.from_group(dist.group.WORLD, kind, mesh_dim_names=("shard",))  # type: ignore[arg-type]
    grid = torch.arange(world.size).view(replicate, shard)
    with stdout_to_stderr():
        columns, _ = dist.new_subgroups_by_enumeration(grid.t().tolist())
        rows, _ = dist.new_subgroups_by_enumeration(grid.tolist())
    world.add_groups(columns, rows)
    return DeviceMesh.from_group(
        [columns, rows], kind, mesh=grid, mesh_dim_names=("replicate", "shard")
    )
