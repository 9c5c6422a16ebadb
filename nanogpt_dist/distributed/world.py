"""The ranks of a run and how they agree. A single process is a World of one.

A World is passed as an argument.

Every decision (go on, stop, save, fail) is agreed here before it is taken, so that no rank waits
for one that left.
"""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist

from nanogpt_dist import start_again
from nanogpt_dist.devices import pick_device, use_expandable_segments
from nanogpt_dist.distributed.process_group import (
    abandon,
    set_nccl_defaults,
    set_timeout,
    stdout_to_stderr,
)
from nanogpt_dist.distributed.watchdog import ExitWith, Watchdog
from nanogpt_dist.errors import (
    CannotCreateError,
    ConfigError,
    NanogptError,
    OutOfMemoryError,
    StorageError,
    error_of,
    one_line,
)

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

# of World.with_long_timeout: the slowest save of the largest model over the slowest disk
LONG_TIMEOUT_S = 24 * 3600
# at least, until the ranks have settled: one may compile its kernels for minutes, the others not
START_TIMEOUT_S = 1800


def is_dtensor(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor: sharded, or replicated over a mesh."""
    # to ask for its class would be to import it, which takes half a second
    return hasattr(tensor, "device_mesh")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, as it is in memory; of a plain one, all."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


@dataclass(frozen=True)
class World:
    """This process among the others.

    device: where its tensors live; backend: None in a single process.

    local_size: ranks on this machine. group: whose timeout holds in what follows, None for the
    usual one. timed_groups: those whose timeout settle() sets, beside the usual one. watchdog:
    finds the rank that failed when a collective does.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    backend: str | None
    local_size: int = 1
    group: dist.ProcessGroup | None = None
    long_timeout_group: dist.ProcessGroup | None = None
    timeout_s: float = field(default=math.inf, compare=False)
    timed_groups: list[dist.ProcessGroup] = field(default_factory=list, compare=False)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, 1, None), compare=False)

    @property
    def with_long_timeout(self) -> "World":
        """The same ranks, which wait for each other for up to a day.

        May be used in a thread beside this one.
        """
        return replace(self, group=self.long_timeout_group)

    def settle(self, settled: bool = True) -> None:
        """Set how long the ranks wait for each other: once `settled`, timeout_s.

        Until then START_TIMEOUT_S at least: the first pass of a kind compiles, tunes and connects,
        which takes one rank a second and another minutes. Each rank for itself.
        """
        seconds = self.timeout_s if settled else max(self.timeout_s, START_TIMEOUT_S)
        if self.watchdog.timeout_s == seconds:
            return
        self.watchdog.timeout_s = seconds
        if self.backend is not None:
            for group in (dist.group.WORLD, *self.timed_groups):
                set_timeout(group, self.device, seconds)

    def add_groups(self, *groups: dist.ProcessGroup) -> None:
        """Have these wait as long as the usual one does."""
        self.timed_groups.extend(groups)
        for group in groups:
            set_timeout(group, self.device, self.watchdog.timeout_s)

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0: the one that prints, logs and writes what all share."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all ranks, in place and returned. On the CPU or on the device."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return self.any_of_each(flag)[0]

    def any_of_each(self, *flags: bool) -> list[bool]:
        """any() of several flags in one vote."""
        if self.size == 1:
            return list(flags)
        # on the CPU: does not wait for the GPU's queue
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in votes.tolist()]

    def vote(
        self,
        flags: Sequence[bool],
        figures: Sequence[float],
    ) -> tuple[list[bool], list[list[float]]]:
        """any_of_each() of `flags`, and each rank's `figures`, which are ≥ 0, in one vote."""
        rows = torch.zeros(self.size, len(figures), dtype=torch.float64)
        rows[self.rank] = torch.tensor(figures)
        votes = torch.cat([torch.tensor(flags, dtype=torch.float64), rows.flatten()])
        if self.size > 1:
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.group)
        voted = [bool(vote) for vote in votes[: len(flags)].tolist()]
        return voted, votes[len(flags) :].view_as(rows).tolist()

    def broadcast_text(self, text: str) -> str:
        """Rank 0's `text` on all ranks."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = torch.tensor([data.numel()])
        dist.broadcast(length, src=0, group=self.group)
        buffer = data if self.is_rank0 else torch.empty(int(length.item()), dtype=torch.uint8)
        if buffer.numel():
            dist.broadcast(buffer, src=0, group=self.group)
        return bytes(buffer.tolist()).decode()

    def all_reduce_speed(self) -> float:
        """Bytes per second in which 16 MiB of each rank's device are summed.

        All ranks together.
        """
        values = torch.zeros(2**22, device=self.device)
        self.sum(values)  # connections are made at the first
        start = time.perf_counter()
        for _ in range(3):
            self.sum(values)
        values[0].item()  # waits for the device
        return 3 * values.nbytes / (time.perf_counter() - start)

    def gather_ints(self, value: int) -> list[int]:
        """Each rank's `value`, in the order of the ranks, on all of them."""
        values = torch.zeros(self.size, dtype=torch.int64)
        values[self.rank] = value
        return self.sum(values).tolist()

    def gather_texts(self, text: str) -> list[str]:
        """Each rank's `text`, in the order of the ranks, on all of them."""
        data = text.encode()
        lengths = self.gather_ints(len(data))
        texts = torch.zeros(self.size, max(lengths), dtype=torch.uint8)
        texts[self.rank, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        rows = self.sum(texts).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def raise_if_ranks_differ(self, **what: str) -> None:
        """Raise ConfigError on all ranks where a text of `what` differs between them."""
        for name, text in what.items():
            texts = self.gather_texts(text)
            odd = next((rank for rank, other in enumerate(texts) if other != texts[0]), None)
            if odd is not None:
                raise ConfigError(
                    f"rank {odd} has another {name} than rank 0: {texts[odd][:50]} and "
                    f"{texts[0][:50]}; start all of them with the same command and installation"
                )

    @contextlib.contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Run a block on all ranks; if a rank raised a NanogptError, all raise the first of them.

        The block must not wait for other ranks. Any other exception leaves at once, as a bug does.
        """
        error: NanogptError | None = None
        try:
            yield
        except NanogptError as raised:
            error = raised
        if not self.any(error is not None):
            return
        codes = self.gather_ints(int(error.code) if error is not None else 0)
        texts = self.gather_texts(one_line(str(error)) if error is not None else "")
        first = next(rank for rank, code in enumerate(codes) if code)
        agreed = error_of(codes[first], f"rank {first}: {texts[first]}" if first else texts[first])
        agreed.agreed = True
        raise agreed from error

    def split_over_ranks(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This rank's items, every size-th; equally many on all ranks.

        Ranks of fsdp wait for each other.

        Where a rank has none left it is given the last of all again, and False.
        """
        for first in range(0, len(items), self.size):
            mine = first + self.rank
            yield items[min(mine, len(items) - 1)], mine < len(items)

    def local_rank0_first(self, load: Callable[[], T]) -> T:
        """load() on all ranks, first on one of each machine, whose files the others find cached.

        They wait for up to a day: it may fetch gigabytes. It must not wait for other ranks. Raises
        as raise_on_all_ranks().
        """
        found: list[T] = []
        for first in (True, False):
            with self.with_long_timeout.raise_on_all_ranks():
                if first == (self.local_rank == 0):
                    found.append(load())
        return found[0]


def _from_torchrun(name: str, otherwise: int) -> int:
    value = os.environ.get(name, str(otherwise))
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ConfigError(
            f"{name}={value[:40]!r} is not what torchrun sets: unset it, or start with torchrun"
        )
    return int(value)


@contextlib.contextmanager
def connect(
    device_name: str,
    timeout_s: int,
    group: bool = False,
    exit_with: ExitWith | None = None,
) -> Iterator[World]:
    """The World of torchrun's environment, or a World of one; leaves the group at the end.

    group: a World of one has a process group, too, as fsdp and ddp want it. exit_with: ends this
    process with an error; it is called where the main thread sits in the device while another rank
    is gone. Whoever gives it ends the process after an error in any case, and that without delay:
    the group is left as it is, for to destroy it would be to wait for what the device has still to
    do with the others. None: the interpreter is the caller's, and the group is abandon()ed.
    """
    rank, local_rank = _from_torchrun("RANK", 0), _from_torchrun("LOCAL_RANK", 0)
    size, local_size = _from_torchrun("WORLD_SIZE", 1), _from_torchrun("LOCAL_WORLD_SIZE", 1)
    if size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(
            "WORLD_SIZE is set, but not MASTER_ADDR and MASTER_PORT: unset it, or start with "
            "torchrun"
        )
    if rank >= size:
        raise ConfigError(
            f"RANK={rank}, but WORLD_SIZE is {size}: unset RANK, or start with torchrun"
        )
    device = pick_device(device_name, local_rank, local_size, group=size > 1 or group)
    if device.type == "cuda":
        use_expandable_segments()
        torch.cuda.set_device(device)
    if size == 1 and not group:
        yield World(
            *(rank, local_rank, size, device, None),
            timeout_s=timeout_s,
            watchdog=Watchdog(0, 1, None, timeout_s),
        )
        return
    if dist.is_initialized():
        raise ConfigError(
            "this process is in a process group already: leave it with "
            "torch.distributed.destroy_process_group(), or start a new one"
        )
    # gloo carries what lives on the CPU (votes, evaluation sums) also where nccl carries the
    # gradients.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        set_nccl_defaults(ends_itself=exit_with is not None)
    timeout = timedelta(seconds=timeout_s)
    store, rank, size = _store(size, timeout)
    watchdog = Watchdog(rank, size, dist.PrefixStore("watch", store))
    with stdout_to_stderr():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    # from it NCCL learns where rank 0 is, which may come to that later by far
    store.set_timeout(timedelta(seconds=max(timeout_s, START_TIMEOUT_S)))
    try:
        with watchdog.watching(exit_with):
            with stdout_to_stderr():
                long_timeout_group = dist.new_group(
                    backend="gloo", timeout=timedelta(seconds=LONG_TIMEOUT_S)
                )
            world = World(
                *(rank, local_rank, size, device, backend, local_size),
                long_timeout_group=long_timeout_group,
                timeout_s=timeout_s,
                watchdog=watchdog,
            )
            world.settle(False)
            yield world
            watchdog.done()
    except BaseException as error:
        named = watchdog.leave(error)
        if isinstance(named, OutOfMemoryError) and named.falls_back:
            watchdog.wait_for_store_to_go()
        if exit_with is None:
            abandon(device)
        raise named from error.__cause__
    dist.destroy_process_group()


def _store(size: int, timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Where the ranks find each other, this rank and the number of ranks."""
    if size == 1:
        return dist.HashStore(), 0, 1
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        raise _not_met(str(error), timeout) from error
    # torchrun mostly keeps one store over restarts: without a prefix a new rank reads the addresses
    # of the dead. Where nodes come and go it makes a new one each time; and each node has another
    # count of restarts.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "True") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if shared else "0"
    # processes that start themselves again do so together
    return dist.PrefixStore(f"attempt/{attempt}/{start_again.times()}", store), rank, size


def _not_met(reason: str, timeout: timedelta) -> NanogptError:
    """The error where the ranks did not come together, from what torch says of it."""
    rank, size, port = os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]
    where = f"{os.environ['MASTER_ADDR']}:{port}"
    if "EADDRINUSE" in reason or "address already in use" in reason:
        return CannotCreateError(
            f"MASTER_PORT {port} is taken by another process; give another --master-port"
        )
    came = re.search(r"(\d+)/\d+ clients joined", reason)
    if came:
        missing = f"{came[1]} of {size} ranks came to {where} within {timeout.total_seconds():g} s"
        return StorageError(
            f"only {missing}; start the others too, or unset WORLD_SIZE and RANK for one process"
        )
    return StorageError(
        f"rank {rank} of {size} found no rank 0 at {where} within {timeout.total_seconds():g} s; "
        "start it, see whether the network reaches it, or unset WORLD_SIZE and RANK"
    )
