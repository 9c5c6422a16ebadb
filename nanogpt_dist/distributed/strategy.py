"""The model over the ranks: whole in one process (single), on each (ddp), sharded (fsdp).

fsdp is FSDP2: each block is a group of its own, gathered when it is at work; tables, last LayerNorm
and the tied head are the root's; fsdp.py does it. On a replicate × shard mesh (HSDP) `shard` ranks
share one copy, of which there are `replicate`.

Source: Li et al. 2020, "PyTorch Distributed".
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import check_recomputing, pick_dtype
from nanogpt_dist.distributed.check_memory import memory_of
from nanogpt_dist.distributed.compilation import plan_compilation
from nanogpt_dist.distributed.layout import (
    Layout,
    Site,
    asks_for_fsdp,
    check_ranks,
    choose_layout,
)
from nanogpt_dist.distributed.world import World, is_dtensor
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.fp8 import check_fp8, convert_to_fp8
from nanogpt_dist.model.gpt import GPT, BlockForward
from nanogpt_dist.model.initial_weights import init_weight
from nanogpt_dist.model.kernels import training_kernels


def plan_layout(
    config: TrainConfig,
    world: World,
    training_bytes: float,
    room: int | None = None,
) -> Layout:
    """The Layout that config asks for, or the fastest that fits where it leaves that open.

    training_bytes: of a parameter's weight, gradient and optimizer state. room: smallest_room().
    Raises ConfigError where the settings do not fit the ranks.
    """
    check_ranks(config, world.size)
    return choose_layout(site_of(config, world, training_bytes, room))


def site_of(
    config: TrainConfig,
    world: World,
    training_bytes: float,
    room: int | None = None,
) -> Site:
    """What a Layout of `config` on these ranks is chosen by."""
    memory = memory_of(world.device, world, room)
    dtype = pick_dtype(config.dtype, world.device)
    return Site(config, memory, world.size, dtype, training_bytes)


def needs_group(config: TrainConfig) -> bool:
    """Whether one process alone needs a process group, too."""
    return config.strategy in ("ddp", "fsdp") or asks_for_fsdp(config)


def lay_out(
    config: TrainConfig,
    layout: Layout,
    world: World,
    dtype: torch.dtype,
    init: bool,
    n_vocab: int | None,
) -> tuple[GPT, nn.Module]:
    """The model, and what to call for a training pass: model(idx, targets) → (logits, loss).

    init=False leaves the weights as they are in memory, for whoever loads them all. The values of
    the others depend on the seed alone. Under fsdp the parameters are DTensors, of which each rank
    only ever holds its shards and one group.
    """
    compilation = plan_compilation(config, layout, world.device)

    def wrap(forward: BlockForward) -> BlockForward:
        if layout.activation_checkpointing != "none":
            check_recomputing(world.device, config.dropout)
            forward = checkpointed(forward, layout.activation_checkpointing)
        return compilation.part(forward)

    kernels = training_kernels(config, world.device, dtype)
    if kernels.head_loss is not None:
        kernels = replace(kernels, head_loss=compilation.part(kernels.head_loss))
    with torch.device("meta"):
        model = GPT(config.architecture(), n_vocab, kernels, wrap)
        if config.fp8:
            check_fp8(config, world.device)
            convert_to_fp8(model.transformer.h)
    seed = config.seed if init else None
    share_out = None
    if layout.strategy == "fsdp":
        from nanogpt_dist.distributed import fsdp

        share_out = fsdp.sharder(config, layout.replicate, layout.shard, world, dtype)
    for name, group in _groups(model):
        _materialize(model, name, group, world.device, seed)
        if share_out is not None:
            share_out(group)
    if share_out is not None:
        return model, model
    wrapped = compilation.model(model)
    if layout.strategy == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        # not static_graph: all parameters are used, so it saves nothing, and it fails with no_sync
        wrapped = DistributedDataParallel(
            wrapped,
            device_ids=ids,
            bucket_cap_mb=config.bucket_cap_mb,
            gradient_as_bucket_view=True,
        )
    return model, wrapped


def _groups(model: GPT) -> list[tuple[str, nn.Module]]:
    """What is gathered at a time, with the prefix of its parameters' names.

    Each block, and last the rest, the root.
    """
    return [(f"transformer.h.{i}.", block) for i, block in enumerate(model.transformer.h)] + [
        ("", model)
    ]


def _materialize(
    model: GPT,
    prefix: str,
    group: nn.Module,
    device: torch.device,
    seed: int | None,
) -> None:
    """Give a group that is on the meta device memory on `device`, and its initial values."""
    for module in group.modules():
        mine = list(module.parameters(recurse=False))
        tied = module is model.lm_head and model.config.tie_embeddings
        if not tied and any(parameter.is_meta for parameter in mine):
            module.to_empty(device=device, recurse=False)
    model.tie()
    if seed is not None:
        for name, parameter in group.named_parameters():
            # has its values already
            if isinstance(group, GPT) and name.startswith("transformer.h."):
                continue
            init_weight(prefix + name, parameter, seed, model.config)


def reducing(wrapped: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Context of one forward and backward pass: gradients are reduced in the `last` one.

    Until then fsdp, too, keeps them whole: 4 bytes a parameter, where there is more than one
    micro-batch.
    """
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    # as fsdp makes it; to name its class would be to import it
    if hasattr(wrapped, "set_requires_gradient_sync"):
        wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
    return contextlib.nullcontext()


def reshard(model: nn.Module) -> None:
    """Drop what fsdp has gathered and not dropped yet, as after a pass without a backward one."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which fsdp has shared out the parts or summands; all ranks together."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor
