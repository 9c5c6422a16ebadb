"""How a training is laid out: strategy, activation checkpointing, micro-batch, as memory allows.

choose_layout() is a function of settings, the memory of one device, and the number of ranks: what
is on `auto` it takes as fast as it fits, and what is given it takes as given. next_layout() is what
to try where that was too much.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.memory import CONTEXT_BYTES, Usage, usage
from nanogpt_dist.distributed.pass_memory import FP32, Pass, count_parameters, head_bytes
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.model import kernels

CPU_SHARE = 0.6  # of a CPU's memory that weights, gradients and state may take under ddp

# Tokens in one pass of a GPU, at most. By then what a pass costs beside its products is less than
# a hundredth: casting and reading the weights, launching kernels, gathering.
MOST_TOKENS = 65_536
# Tokens in one pass that are worth more than not to recompute: with fewer, matrix products of a
# small model leave multiprocessors idle (4,096 × 768 outputs are 192 tiles of 128², for 108 to
# 132 of them), and fsdp's gathering of 4 bytes a parameter no longer hides behind 6 operations a
# token and parameter. Where not even that many fit, half as many are tried, and so on.
ENOUGH_TOKENS = (4096, 2048, 1024, 0)
# The same on a CPU, which few tokens keep busy.
ENOUGH_ON_CPU = (512, 256, 0)
# What auto_batch_size leaves on a CPU: for what the process takes beside the tensors (threads'
# stacks and malloc's arenas, torch's own modules, buffers of files and of gloo), and of them for
# what malloc cannot give out again, in pieces: 15 to 26 % were measured. A freed block is too small
# for an aligned one of its size, so that the head's, where they are nearly all, are there up to
# three times.
CPU_ALLOWANCE_BYTES, CPU_SLACK, CPU_HEAD = 300_000_000, 0.25, 3
# The fastest first. Selective checkpointing computes no product again; fsdp moves what ddp does
# not, mostly while the GPU is at work; full checkpointing is another forward pass, a third more.
BY_SPEED = (
    ("whole", "none"),
    ("whole", "selective"),
    ("fsdp", "none"),
    ("fsdp", "selective"),
    ("whole", "full"),
    ("fsdp", "full"),
)
MOST_MESHES = 12  # that a message names
MODES = ("none", "selective", "full")  # of activation checkpointing, what saves more behind


@dataclass(frozen=True)
class Layout:
    """strategy: single, ddp or fsdp, and how many copies and shards.

    replicate × shard = the ranks; shard is 1 unless the strategy is fsdp. batch_size: sequences of
    a micro-batch. usage: bytes that a rank is expected to take; None: nobody asked.
    """

    strategy: str
    replicate: int
    shard: int
    activation_checkpointing: str = "none"
    batch_size: int = 1
    usage: Usage | None = None

    def __str__(self) -> str:
        copies = (
            f", {self.replicate} copies of {self.shard} shards" if self.strategy == "fsdp" else ""
        )
        return f"{self.strategy}{copies}"

    def autocast_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fsdp casts the weights themselves to `dtype`; the others leave it to autocast."""
        return torch.float32 if self.strategy == "fsdp" else dtype


def is_compiled(config: TrainConfig, device: str) -> bool:
    """Whether training on this kind of device is compiled: where nothing else is said, on cuda."""
    return device == "cuda" if config.compile is None else config.compile


@dataclass(frozen=True)
class Memory:
    """The memory of one device: bytes in all, bytes that nobody uses (None: unknown).

    ranks: that share it: all of a machine share the CPU's, a GPU has one. room: bytes that each of
    them may still take, by which auto_batch_size chooses; None: unknown.
    """

    total: int
    free: int | None
    ranks: int
    device: str  # cpu, cuda, mps
    room: int | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether it is the machine's own, of which the kernel kills who takes too much."""
        return self.device != "cuda"


@dataclass(frozen=True)
class Site:
    """A training before it is laid out: config with vocab_size, one device, and how many ranks.

    dtype: of the matrix products. training_bytes: of a parameter's weight, gradient and optimizer
    state.
    """

    config: TrainConfig
    memory: Memory
    ranks: int
    dtype: torch.dtype
    training_bytes: float

    @property
    def share(self) -> int:
        """Sequences of one rank in a step."""
        return max(1, self.config.global_batch_size // self.ranks)

    def with_usage(self, layout: Layout) -> Layout:
        """`layout` with what it is expected to take."""
        return replace(layout, usage=usage(self.config, self._pass(layout), self.ranks))

    def _pass(self, layout: Layout) -> Pass:
        config, memory, on_gpu = self.config, self.memory, not self.memory.on_cpu
        return Pass(
            whole=layout.strategy != "fsdp",
            buckets=layout.strategy == "ddp",
            shard=layout.shard,
            activation_checkpointing=layout.activation_checkpointing,
            batch_size=layout.batch_size,
            micro_batches=self.share // layout.batch_size,
            dtype=self.dtype,
            compiled=is_compiled(config, memory.device),
            state_bytes=self.training_bytes - 2 * FP32,
            cuda=on_gpu,
            cpu_kernels=kernels.uses_cpu_kernels(config, torch.device(memory.device), self.dtype),
        )

    def fits(self, layout: Layout) -> bool:
        """Whether each rank has room for all that `layout` is expected to take.

        On a CPU, whose micro-batches are as large as they are given, for weights, gradients and
        optimizer state in a share of it; with auto_batch_size for all, of what is free now.
        """
        memory, room = self.memory, self.memory.room
        if not memory.on_cpu or self.config.auto_batch_size:
            within = room is None or self.takes(layout) <= room
            return within and self.fits_in_all(layout)
        states = int(self.training_bytes * count_parameters(self.config).total // layout.shard)
        return states <= CPU_SHARE * self.memory.total / self.memory.ranks

    def fits_in_all(self, layout: Layout) -> bool:
        """Whether each rank's share of the memory in all suffices, whoever takes of it now."""
        memory = self.memory
        if memory.on_cpu:
            return self.takes(layout) <= memory.total // memory.ranks
        return peak(layout) <= memory.total

    def takes(self, layout: Layout) -> int:
        """Bytes that a rank is expected to take of what is free now, at most."""
        if self.memory.on_cpu:
            head = CPU_HEAD * head_bytes(self.config, self._pass(layout))
            return int(max((1 + CPU_SLACK) * peak(layout), head)) + CPU_ALLOWANCE_BYTES
        return peak(layout) - CONTEXT_BYTES  # which is not free by now


def check_ranks(config: TrainConfig, ranks: int) -> None:
    """Raises ConfigError where a strategy is asked for that there is not on so many ranks."""
    if config.strategy == "single" and ranks > 1:
        raise ConfigError(
            f"--strategy single on {ranks} ranks would train {ranks} models: leave it out"
        )
    if config.strategy in ("single", "ddp"):
        for name in ("mesh", "cpu_offload"):
            if getattr(config, name):
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} needs --strategy fsdp, this is {config.strategy}: add it, or leave "
                    f"--{flag} out"
                )
    if config.mesh is None:
        return
    replicate, shard = map(int, config.mesh.split("x"))
    if replicate * shard != ranks:
        meshes = (f"{ranks // n}x{n}" for n in range(ranks, 0, -1) if ranks % n == 0)
        fits = ", ".join(itertools.islice(meshes, MOST_MESHES))
        raise ConfigError(
            f"--mesh {config.mesh} is for {replicate * shard} ranks, there are {ranks}; give {fits}"
        )


def choose_layout(site: Site) -> Layout:
    """The fastest Layout that fits, of those that the settings allow.

    By the memory in all, not by what is free, so that a resume on the same device chooses the same;
    with auto_batch_size, whose choice a run remembers, by what is free. Where nothing fits, the
    Layout that takes least: its usage says how much.
    """
    layouts = [site.with_usage(layout) for layout in _allowed(site)]
    most = max(layout.batch_size for layout in layouts)
    for tokens in ENOUGH_ON_CPU if site.memory.on_cpu else ENOUGH_TOKENS:
        enough = min(most, -(-tokens // site.config.block_size))
        for layout in layouts:
            if layout.batch_size >= enough and site.fits(layout):
                return layout
    return min(layouts, key=peak)


def next_layout(site: Site, failed: Layout) -> Layout | None:
    """What to try where `failed` has run out of memory; None: there is nothing smaller.

    A smaller micro-batch; where there is none, more activation checkpointing; then fsdp.
    """
    failed = site.with_usage(failed)
    smaller = [
        layout
        for layout in map(site.with_usage, _allowed(site))
        if _saving(layout) > _saving(failed) and peak(layout) < peak(failed)
    ]
    return min(smaller, key=_saving, default=None)


def next_larger(site: Site, layout: Layout) -> Layout | None:
    """`layout` with the next larger micro-batch that the settings allow; None: there is none."""
    larger = [
        site.with_usage(one)
        for one in _allowed(site)
        if replace(one, batch_size=layout.batch_size) == replace(layout, usage=None)
        and one.batch_size > layout.batch_size
    ]
    return min(larger, key=lambda one: one.batch_size, default=None)


def _saving(layout: Layout) -> tuple[bool, int, int]:
    """By which next_layout() orders: what saves more is greater."""
    mode = MODES.index(layout.activation_checkpointing)
    return layout.strategy == "fsdp", mode, -layout.batch_size


def is_allowed(site: Site, layout: Layout) -> bool:
    """Whether the settings leave `layout` open."""
    return any(replace(one, usage=None) == replace(layout, usage=None) for one in _allowed(site))


def peak(layout: Layout) -> int:
    """Bytes that a rank is expected to take at most."""
    assert layout.usage is not None
    return layout.usage.peak


def _allowed(site: Site) -> Iterator[Layout]:
    """What the settings leave open, the fastest first; of these the larger micro-batch first."""
    config = site.config
    modes: set[str] = {config.activation_checkpointing}
    if modes == {"auto"}:
        on_cpu = site.memory.on_cpu and not config.auto_batch_size
        modes = {"none"} if on_cpu else set(MODES)
    for kind, mode in BY_SPEED:
        strategy = _strategy(config, site.ranks, kind)
        if strategy is not None and mode in modes:
            copies = _copies(config, site.ranks) if strategy == "fsdp" else (site.ranks, 1)
            for batch_size in _batch_sizes(site):
                yield Layout(strategy, *copies, mode, batch_size)


def _strategy(config: TrainConfig, ranks: int, kind: str) -> str | None:
    """The strategy of this kind, whole or fsdp, that the settings allow; None: there is none."""
    asked = "fsdp" if asks_for_fsdp(config) else config.strategy
    if asked == "auto":
        whole = "single" if ranks == 1 else "ddp"
        return whole if kind == "whole" else "fsdp" if ranks > 1 else None
    return asked if (asked == "fsdp") == (kind == "fsdp") else None


def _copies(config: TrainConfig, ranks: int) -> tuple[int, int]:
    """fsdp's copies of the model, and the shards of each."""
    if config.mesh is None:
        return 1, ranks
    replicate, shard = map(int, config.mesh.split("x"))
    return replicate, shard


def asks_for_fsdp(config: TrainConfig) -> bool:
    """Whether settings that fsdp alone has are given, and no strategy."""
    return config.strategy == "auto" and (config.mesh is not None or config.cpu_offload)


def _batch_sizes(site: Site) -> list[int]:
    """Sequences of a micro-batch, the largest first: divisors of what a rank has in a step.

    Where micro-batches are joined, a GPU may have any of them up to MOST_TOKENS, and with
    auto_batch_size a CPU up to kernels.ENOUGH_TOKENS, or batch_size where that is more; otherwise
    there is one, the largest that is allowed.
    """
    config, memory = site.config, site.memory
    auto = config.auto_batch_size
    at_most, join = config.batch_size, config.join_micro_batches or auto
    if join and not memory.on_cpu:
        at_most = max(at_most, MOST_TOKENS // config.block_size)
    elif auto:
        at_most = max(at_most, kernels.ENOUGH_TOKENS // config.block_size)
    elif join and kernels.uses_cpu_kernels(config, torch.device(memory.device), site.dtype):
        at_most = kernels.joined_batch_size(config, memory.ranks, memory.total)
    sizes = [n for n in range(min(at_most, site.share), 0, -1) if site.share % n == 0]
    return sizes if auto or (join and not memory.on_cpu) else sizes[:1]
