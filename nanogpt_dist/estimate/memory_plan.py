"""The memory that a training would take in each way to lay it out, and the best of them.

Bytes are those of distributed/memory.py, and the best is what distributed/layout.py chooses: what
training itself goes by. Nothing is built, so that it takes no longer for a thousand ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data.batches import micro_batch_size
from nanogpt_dist.distributed.check_memory import advice, flags_for, opened
from nanogpt_dist.distributed.layout import (
    MOST_TOKENS,
    Layout,
    Memory,
    Site,
    check_ranks,
    choose_layout,
    peak,
)
from nanogpt_dist.distributed.memory import SLACK
from nanogpt_dist.distributed.pass_memory import FP32, count_parameters
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.training.optim import average_bytes, training_bytes

LESS = "take a smaller model, a shorter --block-size, or more machines with --strategy fsdp"
MODES = ("none", "selective", "full")
DTYPES = {
    "auto": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Alternative:
    """One way to lay a training out, with what a rank takes of its device.

    strategy: single, ddp, fsdp or hsdp, which is fsdp with several copies. micro_batches: of a rank
    in a step. parts: bytes by what takes them, at the moment at which they are most. room: bytes
    that are left; below 0, how many are missing. flags: what to type to have just this; "":
    nothing, the settings do it. advice: what to do where nothing fits; None: something does.
    """

    strategy: str
    layout: Layout
    micro_batches: int
    parts: dict[str, int]
    room: int
    fits: bool
    flags: str
    advice: str | None = None

    @property
    def peak(self) -> int:
        """Bytes of a rank at most."""
        return peak(self.layout)


def site_of(
    config: TrainConfig,
    device_bytes: int,
    ranks: int,
    ranks_per_node: int,
    device: str = "cuda",
    dtype: torch.dtype | None = None,
) -> Site:
    """The Site of a training that is elsewhere, with all memory free.

    device_bytes: of a GPU; of a CPU the machine's, which all ranks of a node share. dtype: of the
    products; None: as the settings say, bfloat16 where they leave it open. vocab_size must be set.
    Raises ConfigError where the ranks cannot be had: an uneven share, a mesh of other ranks.
    """
    check_ranks(config, ranks)
    for piece in config.ramp.pieces:
        micro_batch_size(config.batch_size, piece.sequences, ranks)  # raises if uneven
    if ranks % ranks_per_node:
        raise ConfigError(f"{ranks} ranks are not a multiple of {ranks_per_node} ranks a node")
    memory = Memory(device_bytes, None, 1 if device == "cuda" else ranks_per_node, device)
    return Site(config, memory, ranks, dtype or DTYPES[config.dtype], training_bytes(config))


def alternatives(site: Site, ranks_per_node: int) -> list[Alternative]:
    """Every Alternative: by strategy, then checkpointing, of each the largest micro-batch first.

    What training chooses by itself is among them, with flags "".
    """
    chosen = choose_layout(site)
    layouts = [
        Layout("fsdp" if name == "hsdp" else name, *copies, mode, batch_size)
        for name, copies in _strategies(site.config, site.ranks, ranks_per_node)
        for mode in MODES
        for batch_size in _batch_sizes(site)
    ]
    return [
        alternative(site, layout, "" if layout == replace(chosen, usage=None) else None)
        for layout in layouts
    ]


def best(site: Site, ranks_per_node: int) -> Alternative:
    """The Alternative that training chooses by itself, or would if its settings let it.

    Where what is set does not fit, the best of what could be set, with the flags that set it; where
    nothing fits, the one of all that lacks least, with its flags and an advice.
    """
    layout = choose_layout(site)
    found = alternative(site, layout, flags="")
    if found.fits:
        return found
    on_cpu = site.memory.on_cpu  # where training counts weights, gradients and moments alone
    if not on_cpu:
        open_site = opened(site)
        layout = choose_layout(open_site)
        if open_site.fits(layout):
            return alternative(site, layout, flags=flags_for(site, layout))
    ways = alternatives(site, ranks_per_node)
    if fitting := next((way for way in ways if way.fits), None):
        return fitting
    nearest = max(ways, key=lambda way: way.room)
    return replace(nearest, advice=LESS if on_cpu else advice(site, nearest.layout))


def alternative(site: Site, layout: Layout, flags: str | None = None) -> Alternative:
    """The Alternative that `layout` is on `site`; flags None: those that make it."""
    if flags is None:
        flags = exact_flags(site.config, layout)
        # of which an evaluation takes as many sequences at a time
        steps = site.config.global_batch_size // layout.batch_size
        given = {"batch_size": layout.batch_size, "gradient_accumulation_steps": steps}
        changed = replace(site, config=site.config.model_copy(update=given))
        layout = changed.with_usage(layout)
    else:
        layout = site.with_usage(layout)
    room = site.memory.total // site.memory.ranks - peak(layout)
    name = "hsdp" if layout.strategy == "fsdp" and layout.replicate > 1 else layout.strategy
    return Alternative(
        strategy=name,
        layout=layout,
        micro_batches=site.share // layout.batch_size,
        parts=parts_of(site, layout),
        room=room,
        fits=room >= 0,
        flags=flags,
    )


def parts_of(site: Site, layout: Layout) -> dict[str, int]:
    """The bytes of `layout` by what takes them; their sum is its peak.

    weights: and averages, those of the parameters. gradients: of earlier micro-batches. buckets:
    of ddp, reduced gradients. gathered: weights that fsdp has gathered, and its buffers. logits:
    and their gradient. temporary: what the backward pass, an evaluation or the optimizer's step
    makes on its way. slack: what the allocator cannot give out. runtime: of CUDA and NCCL.
    """
    usage = layout.usage
    assert usage is not None
    total = count_parameters(site.config).total
    averages = usage.weights // FP32 * average_bytes(site.config)
    buckets = min(usage.gradients, FP32 * total) if layout.strategy == "ddp" else 0
    slack = 0 if site.memory.on_cpu else int(SLACK * (usage.peak - usage.allowance))
    return {
        "weights": usage.weights,
        "averages": averages,
        "moments": usage.moments - averages,
        "gradients": usage.gradients - buckets,
        "buckets": buckets,
        "gathered": usage.gathered,
        "activations": usage.activations,
        "logits": usage.head,
        "temporary": usage.temporary,
        "slack": slack,
        "runtime": usage.allowance - slack,
    }


def _strategies(
    config: TrainConfig, ranks: int, ranks_per_node: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """The name of each strategy that there is on these ranks, with its copies and their shards."""
    if config.mesh is not None:
        replicate, shard = map(int, config.mesh.split("x"))
        yield ("hsdp" if replicate > 1 else "fsdp"), (replicate, shard)
        return
    if not config.cpu_offload:
        if ranks == 1:
            yield "single", (1, 1)
        if ranks > 1 or config.strategy == "ddp":
            yield "ddp", (ranks, 1)
    if ranks > 1 or config.cpu_offload or config.strategy == "fsdp":
        yield "fsdp", (1, ranks)
    if 1 < ranks_per_node < ranks:
        yield "hsdp", (ranks // ranks_per_node, ranks_per_node)


def _batch_sizes(site: Site) -> list[int]:
    """Sequences that a micro-batch may have, the largest first: divisors of a rank's in a step."""
    most = max(site.config.batch_size, MOST_TOKENS // site.config.block_size)
    return [n for n in range(min(most, site.share), 0, -1) if site.share % n == 0]


def exact_flags(config: TrainConfig, layout: Layout) -> str:
    """The flags that make `layout` of settings, whatever they leave open."""
    flags = [f"--activation-checkpointing {layout.activation_checkpointing}"]
    if layout.strategy == "fsdp" and layout.replicate > 1:
        strategy = "" if config.strategy in ("auto", "fsdp") else "--strategy fsdp "
        flags.insert(0, f"{strategy}--mesh {layout.replicate}x{layout.shard}")
    else:
        flags.insert(0, f"--strategy {layout.strategy}")
    flags.append(f"--no-join-micro-batches --batch-size {layout.batch_size}")
    if config.batch_ramp is None:
        steps = config.global_batch_size // layout.batch_size
        flags.append(f"--gradient-accumulation-steps {steps}")
    return " ".join(flags)
