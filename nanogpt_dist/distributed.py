"""The ranks of a run and how they agree. A World is passed as an argument; a single process is a World of one.

Every decision (go on, stop, save, fail) is agreed here before it is taken, so that no rank waits for one that left.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from nanogpt_dist.devices import pick_device
from nanogpt_dist.errors import MAX_LINE, ConfigError, NanogptError, error_of, one_line


@dataclass(frozen=True)
class World:
    """This process among the others. `device` is where its tensors live, `backend` None in a single process."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    backend: str | None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0: the one that prints, logs and writes what all share."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all ranks, in place and returned. On the CPU or on the device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        if self.size == 1:
            return flag
        vote = torch.tensor([float(flag)])  # on the CPU: does not wait for the GPU's queue
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        return bool(vote.item())

    def text_from_lead(self, text: str) -> str:
        """Rank 0's `text` on all ranks."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = torch.tensor([data.numel()])
        dist.broadcast(length, src=0)
        buffer = data if self.leads else torch.empty(int(length.item()), dtype=torch.uint8)
        if buffer.numel():
            dist.broadcast(buffer, src=0)
        return bytes(buffer.tolist()).decode()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on all ranks; if it raised a NanogptError on some, all raise the first of these at its end.

        The block must not wait for other ranks. Any other exception leaves at once, as a bug does.
        """
        error: NanogptError | None = None
        try:
            yield
        except NanogptError as raised:
            error = raised
        if not self.any(error is not None):
            return
        codes = torch.zeros(self.size, dtype=torch.int64)
        texts = torch.zeros(self.size, MAX_LINE * 4, dtype=torch.uint8)  # a character takes at most four bytes
        if error is not None:
            data = one_line(str(error)).encode()
            codes[self.rank] = int(error.code)
            texts[self.rank, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        codes, texts = self.sum(codes), self.sum(texts)
        first = int(codes.nonzero()[0].item())
        message = bytes(texts[first].tolist()).rstrip(b"\0").decode()
        agreed = error_of(int(codes[first].item()), f"rank {first}: {message}" if first else message)
        agreed.agreed = True
        raise agreed from error


def _from_torchrun(name: str, otherwise: int) -> int:
    value = os.environ.get(name, str(otherwise))
    if not value.isdecimal():
        raise ConfigError(f"{name}={value!r} is not what torchrun sets: unset it, or start with torchrun")
    return int(value)


@contextlib.contextmanager
def connect(device_name: str, timeout_s: int) -> Iterator[World]:
    """The World that torchrun's environment describes, or a World of one without it. Leaves the group at the end."""
    rank, local_rank = _from_torchrun("RANK", 0), _from_torchrun("LOCAL_RANK", 0)
    size, local_size = _from_torchrun("WORLD_SIZE", 1), _from_torchrun("LOCAL_WORLD_SIZE", 1)
    if size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError("WORLD_SIZE is set, but not MASTER_ADDR and MASTER_PORT: unset it, or start with torchrun")
    device = pick_device(device_name, local_rank, local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank, local_rank, size, device, None)
        return
    # gloo carries what lives on the CPU (votes, evaluation sums) also where nccl carries the gradients.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps one store over restarts: without a prefix a new rank reads the addresses of the dead.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend, store=dist.PrefixStore(f"attempt/{attempt}", store), rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield World(rank, local_rank, size, device, backend)
    finally:
        dist.destroy_process_group()
