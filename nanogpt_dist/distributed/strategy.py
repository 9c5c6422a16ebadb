"""The model over the ranks: whole in one process (single), on each (ddp), sharded (fsdp).

fsdp is FSDP2: each block is a group of its own, gathered when it is at work; tables, last LayerNorm
and the tied head are the root's; fsdp.py does it. On a replicate × shard mesh (HSDP) `shard` ranks
share one copy, of which there are `replicate`.

Source: Li et al. 2020, "PyTorch Distributed".
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import check_recomputing
from nanogpt_dist.distributed.memory import ddp_fits
from nanogpt_dist.distributed.world import World, is_dtensor
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.gpt import GPT, BlockForward, init_weight
from nanogpt_dist.model.kernels import training_kernels


@dataclass(frozen=True)
class Layout:
    """strategy: single, ddp or fsdp, and how many copies and shards.

    replicate × shard = the ranks; shard is 1 unless the strategy is fsdp.
    """

    strategy: str
    replicate: int
    shard: int

    def __str__(self) -> str:
        copies = (
            f", {self.replicate} copies of {self.shard} shards" if self.strategy == "fsdp" else ""
        )
        return f"{self.strategy}{copies}"

    def autocast_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fsdp casts the weights themselves to `dtype`; the others leave it to autocast."""
        return torch.float32 if self.strategy == "fsdp" else dtype


def plan_layout(config: TrainConfig, world: World, training_bytes: int) -> Layout:
    """The Layout that config asks for. Raises ConfigError where it does not fit the ranks.

    training_bytes: of a parameter's weight, gradient and optimizer state.
    """
    strategy = str(config.strategy)
    if strategy == "auto":
        strategy = _choose_strategy(config, world, training_bytes)
    if strategy == "single" and world.size > 1:
        raise ConfigError(
            f"--strategy single on {world.size} ranks would train {world.size} models: leave it out"
        )
    if strategy != "fsdp":
        for name in ("mesh", "cpu_offload"):
            if getattr(config, name):
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} needs --strategy fsdp, this is {strategy}: add it, or leave "
                    f"--{flag} out"
                )
        return Layout(strategy, world.size, 1)
    if config.mesh is None:
        return Layout(strategy, 1, world.size)
    replicate, shard = map(int, config.mesh.split("x"))
    if replicate * shard != world.size:
        fits = ", ".join(
            f"{world.size // n}x{n}" for n in range(world.size, 0, -1) if world.size % n == 0
        )
        raise ConfigError(
            f"--mesh {config.mesh} is for {replicate * shard} ranks, there are {world.size}; give "
            f"{fits}"
        )
    return Layout(strategy, replicate, shard)


def needs_group(config: TrainConfig) -> bool:
    """Whether one process alone needs a process group, too."""
    return config.strategy in ("ddp", "fsdp") or _asks_for_fsdp(config)


def _asks_for_fsdp(config: TrainConfig) -> bool:
    return config.strategy == "auto" and (config.mesh is not None or config.cpu_offload)


def _choose_strategy(config: TrainConfig, world: World, training_bytes: int) -> str:
    """single in one process; several shard the model where they are told how, or if it is large."""
    if _asks_for_fsdp(config):
        return "fsdp"
    if world.size == 1:
        return "single"
    return "ddp" if ddp_fits(config, world, training_bytes) else "fsdp"


def lay_out(
    config: TrainConfig,
    layout: Layout,
    world: World,
    dtype: torch.dtype,
    init: bool = True,
    n_vocab: int | None = None,
) -> tuple[GPT, nn.Module]:
    """The model, and what to call for a training pass: model(idx, targets) → (logits, loss).

    init=False leaves the weights as they are in memory, for whoever loads them all. The values of
    the others depend on the seed alone. Under fsdp the parameters are DTensors, of which each rank
    only ever holds its shards and one group.
    """
    compile_it = config.compile if config.compile is not None else world.device.type == "cuda"
    # the gathering between blocks cannot be compiled
    compile_blocks = compile_it and layout.strategy == "fsdp"

    def wrap(forward: BlockForward) -> BlockForward:
        if config.activation_checkpointing != "none":
            check_recomputing(world.device, config.dropout)
            forward = checkpointed(forward, config.activation_checkpointing)
        return torch.compile(forward) if compile_blocks else forward

    kernels = training_kernels(config, world.device, dtype)
    with torch.device("meta"):
        model = GPT(config.architecture(), n_vocab, kernels, wrap)
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
    wrapped: nn.Module = torch.compile(model) if compile_it else model  # type: ignore[assignment]
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
            init_weight(prefix + name, parameter, seed, model.config.n_layer)


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
