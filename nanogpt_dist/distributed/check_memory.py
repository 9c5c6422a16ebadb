"""Whether a training fits into the memory that there is, said before anything is built."""

from dataclasses import replace

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import free_memory_bytes, room_bytes, total_memory_bytes
from nanogpt_dist.distributed.layout import Layout, Memory, Site, choose_layout, peak
from nanogpt_dist.distributed.pass_memory import count_parameters
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError

TIGHT = 0.8  # of a CPU's free memory for weights, gradients and state: hardly enough for the rest
MOST_GPUS = 1024  # up to which a number of them that would do is looked for


def memory_of(device: torch.device, world: World, room: int | None = None) -> Memory:
    """What `device` has now; room: as smallest_room() has found it."""
    ranks = 1 if device.type == "cuda" else world.local_size
    total, free = total_memory_bytes(device), free_memory_bytes(device)
    return Memory(total, free, ranks, device.type, room)


def smallest_room(config: TrainConfig, world: World) -> int | None:
    """Bytes that each rank may still take of its device's memory; all ranks together.

    None where it is unknown, and where nothing is chosen by it: without auto_batch_size on any.
    """
    if not world.any(config.auto_batch_size):
        return None
    room = room_bytes(world.device, world.local_size)
    rooms = world.gather_ints(-1 if room is None else room)
    return None if min(rooms) < 0 else min(rooms)


def check_memory(site: Site, layout: Layout, host: Memory) -> str | None:
    """A warning where a training will hardly fit into memory. Raises ConfigError where it cannot.

    host: the machine's memory, in which cpu_offload keeps weights, gradients and optimizer state.
    """
    if site.memory.on_cpu:
        return check_cpu(site, layout, site.memory)
    if site.config.cpu_offload:
        warning = check_cpu(site, layout, host)
        return check_gpu(site, layout) or warning
    return check_gpu(site, layout)


def check_cpu(site: Site, layout: Layout, memory: Memory) -> str | None:
    """check_memory() for what lies in a machine's memory.

    Where it ends, the kernel kills without a word: what is free counts.
    """
    states = int(site.training_bytes * count_parameters(site.config).total // layout.shard)
    needed, free = states * memory.ranks, memory.free
    has = f"{memory.total / 2**30:,.1f} GiB" + (
        "" if free is None else f", {free / 2**30:,.1f} free"
    )
    text = (
        f"weights, gradients and optimizer state take {needed / 2**30:,.1f} GiB, this machine has "
        f"{has}"
    )
    if needed > memory.total or (free is not None and needed > free):
        raise ConfigError(f"{text}; take a smaller model, or more machines with --strategy fsdp")
    in_all = peak(layout) * memory.ranks if site.memory.on_cpu else needed
    if free is None or (needed <= TIGHT * free and in_all <= free):
        return None
    return f"{text}; with activations about {in_all / 2**30:,.1f} GiB"


def check_gpu(site: Site, layout: Layout) -> str | None:
    """check_memory() for what lies in a GPU's memory.

    Weights and optimizer state that are larger than it are refused, and so is a choice of our own
    that takes more. What somebody asked for is tried: the GPU says itself that it is full.
    """
    total, free = site.memory.total, site.memory.free
    usage = layout.usage
    assert usage is not None
    takes = (
        f"a GPU needs about {usage.peak / 1e9:,.1f} GB ({usage.states / 1e9:,.1f} for weights, "
        f"gradients and optimizer state)"
    )
    if usage.peak > total:
        text = f"{takes} and has {total / 1e9:,.1f}; {advice(site, layout)}"
        allocated = usage.peak - usage.allowance
        if usage.states > total or (_is_free(site) and allocated > total):
            raise ConfigError(text)
        return text
    if free is not None and usage.peak - usage.allowance > free:
        return (
            f"{takes}, of {total / 1e9:,.1f} only {free / 1e9:,.1f} are free: nvidia-smi says who "
            "has the rest"
        )
    return None


def _is_free(site: Site) -> bool:
    """Whether the settings leave the choice to us."""
    config = site.config
    return (
        config.strategy == "auto"
        and config.activation_checkpointing == "auto"
        and config.join_micro_batches
    )


def advice(site: Site, layout: Layout) -> str:
    """What to type in place of `layout`, which does not fit."""
    open_site = opened(site)
    best = choose_layout(open_site)
    if open_site.fits(best):
        return f"type {flags_for(site, best)}"
    return _beyond(site, open_site)


def takes_more(site: Site) -> str:
    """What to do where not even the smallest of all layouts fits."""
    if site.memory.on_cpu:
        return "take a smaller model, or a shorter --block-size"
    return _beyond(site, site)


def _beyond(site: Site, open_site: Site) -> str:
    offloaded = _changed(open_site, strategy="fsdp", cpu_offload=True)
    if not site.config.cpu_offload and offloaded.fits(choose_layout(offloaded)):
        offload = "type --strategy fsdp --cpu-offload"
    else:
        offload = "take a smaller model, or a shorter --block-size"
    ranks = _ranks_that_fit(open_site)
    return offload if ranks is None else f"{offload}, or take {ranks} GPUs"


def opened(site: Site) -> Site:
    """`site` with all left open that memory decides, but for a mesh that was asked for."""
    site = _changed(site, activation_checkpointing="auto", join_micro_batches=True)
    return site if site.config.mesh is not None else _changed(site, strategy="auto")


def _ranks_that_fit(site: Site) -> int | None:
    """More ranks, a power of two, on which the training fits; None: there are none."""
    if site.config.mesh is not None:
        return None
    for ranks in (2**n for n in range(1, MOST_GPUS.bit_length())):
        more = replace(site, ranks=ranks)
        evenly = ranks > site.ranks and site.config.global_batch_size % ranks == 0
        if evenly and more.fits(choose_layout(more)):
            return ranks
    return None


def _changed(site: Site, **settings: object) -> Site:
    return replace(site, config=site.config.model_copy(update=settings))


def flags_for(site: Site, best: Layout) -> str:
    """The flags that make `best` of the settings as they are."""
    config = site.config
    flags = []
    if config.strategy not in ("auto", best.strategy):
        flags.append(f"--strategy {best.strategy}")
    if config.activation_checkpointing not in ("auto", best.activation_checkpointing):
        flags.append(f"--activation-checkpointing {best.activation_checkpointing}")
    if not config.join_micro_batches and config.batch_size < best.batch_size:
        flags.append("--join-micro-batches")
    elif not config.join_micro_batches and config.batch_size > best.batch_size:
        flags.append(f"--batch-size {best.batch_size}")
        if config.batch_ramp is None:
            steps = config.global_batch_size // best.batch_size
            flags[-1] += f" --gradient-accumulation-steps {steps}"
    return " ".join(flags) or "--join-micro-batches"
