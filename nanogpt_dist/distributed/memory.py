"""Whether weights, gradients and optimizer state fit into the memory that the ranks have."""

from dataclasses import dataclass

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import free_memory_bytes, total_memory_bytes
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.model.gpt import GPT

TIGHT = 0.8  # of what is free: with more the activations may be too much
DDP_SHARE = 0.6  # of a device's memory that these may take under ddp; the rest is for activations


@dataclass(frozen=True)
class Memory:
    """The memory of one device: bytes in all, bytes that nobody uses (None: unknown), its ranks."""

    total: int
    free: int | None
    ranks: int  # that share it: all of a machine share the CPU's, a GPU has one
    on_cpu: bool


def memory_of(device: torch.device, world: World) -> Memory:
    """What `device` has now."""
    on_cpu = device.type != "cuda"
    ranks = world.local_size if on_cpu else 1
    return Memory(total_memory_bytes(device), free_memory_bytes(device), ranks, on_cpu)


def count_parameters(config: TrainConfig) -> int:
    """The parameters of config's model, counted without memory for them."""
    with torch.device("meta"):
        return GPT(config.architecture()).num_params()


def ddp_fits(config: TrainConfig, world: World, training_bytes: int) -> bool:
    """Whether each rank has room for a whole model and its activations.

    training_bytes: of a parameter's weight, gradient and optimizer state.
    """
    ranks = 1 if world.device.type == "cuda" else world.local_size
    share = DDP_SHARE * total_memory_bytes(world.device) / ranks
    return training_bytes * count_parameters(config) <= share


def check_memory(
    config: TrainConfig,
    shards: int,
    world: World,
    training_bytes: int,
) -> str | None:
    """A warning where a training will hardly fit into memory. Raises ConfigError where it cannot.

    Each rank holds 1/shards of the model. training_bytes: as in ddp_fits().
    """
    device = torch.device("cpu") if config.cpu_offload else world.device
    return check_fit(training_bytes * count_parameters(config) // shards, memory_of(device, world))


def check_fit(rank_bytes: int, memory: Memory) -> str | None:
    """A warning where `rank_bytes` of each rank hardly fit, None where they do. Raises ConfigError.

    A GPU says itself that it is full; where a CPU's memory ends the kernel kills without a word, so
    there what is free counts.
    """
    needed, free = rank_bytes * memory.ranks, memory.free
    has = f"{memory.total / 2**30:,.1f} GiB" + (
        "" if free is None else f", {free / 2**30:,.1f} free"
    )
    text = (
        f"weights, gradients and optimizer state take {needed / 2**30:,.1f} GiB, "
        f"{'this machine' if memory.on_cpu else 'the GPU'} has {has}"
    )
    if needed > memory.total or (memory.on_cpu and free is not None and needed > free):
        raise ConfigError(
            f"{text}; take a smaller model, or more {'machines' if memory.on_cpu else 'GPUs'} with "
            "--strategy fsdp"
        )
    if free is None or needed <= TIGHT * free:
        return None
    return f"{text}; activations come on top"
