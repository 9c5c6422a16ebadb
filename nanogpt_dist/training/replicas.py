"""Copies of the weights that are no copies any more: memory, a GPU or a link has flipped a bit.

Ranks that hold the same part of weights and moments make the same steps from the same gradients, so
that all have the same bits. Now and then, and before each save, they compare 8 bytes of them. One
rank, and fsdp without copies, have nothing to compare with.

Dixit et al. 2021, "Silent Data Corruptions at Scale"; Llama Team 2024, "The Llama 3 Herd of
Models", §3.3.4.
"""

import socket
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nanogpt_dist.distributed.world import local_part
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.training.optim import named_state
from nanogpt_dist.training.step import TrainStep

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd: multiples of it lie far apart


def digest(tensors: Iterable[Tensor]) -> int:
    """8 bytes of all values, in their order, signed; a flipped bit always makes another number.

    The bits of each tensor are summed up as integers, which a flip changes by a power of two, and
    the sums are multiplied by odd numbers, modulo 2^64.
    """
    total = 0
    sums: list[Tensor] = []
    for values in tensors:
        part = local_part(values.detach()).contiguous().view(-1)
        sums.append(part.view(INTEGERS[part.element_size()]).sum(dtype=torch.int64))
    for i, found in enumerate(_on_cpu(sums)):
        total += found * ((2 * i + 1) * GOLDEN)
    return (total + 2**63) % 2**64 - 2**63


def _on_cpu(sums: list[Tensor]) -> list[int]:
    """The numbers of scalars on one device or several; of each it is waited for once."""
    by_device: dict[torch.device, list[int]] = {}
    for i, found in enumerate(sums):
        by_device.setdefault(found.device, []).append(i)
    numbers = [0] * len(sums)
    for places in by_device.values():
        for i, number in zip(places, torch.stack([sums[i] for i in places]).tolist(), strict=True):
            numbers[i] = number
    return numbers


def odd_ranks(digests: Sequence[int], shard: int) -> list[int]:
    """The ranks whose digest is not that of most of their copies; all of these where none is.

    digests: in the order of the ranks; of each `shard` in turn one copy.
    """
    found = []
    for column in range(shard):
        ranks = range(column, len(digests), shard)
        (most, times), *others = Counter(digests[rank] for rank in ranks).most_common()
        if others:
            no_majority = 2 * times <= len(ranks)
            found += [rank for rank in ranks if no_majority or digests[rank] != most]
    return sorted(found)


class Replicas:
    """The copies that the ranks of a TrainStep hold of each other's weights and moments."""

    def __init__(self, train_step: TrainStep) -> None:
        self.train_step, self.world = train_step, train_step.world
        self.every = train_step.config.check_replicas_every
        self.layout = train_step.layout
        self._compared = 0  # after so many steps they were the same

    def is_due(self, step: int) -> bool:
        """Whether they are to be compared after `step` steps."""
        return self._are_there and step % self.every == 0

    @property
    def _are_there(self) -> bool:
        return self.every > 0 and self.layout.replicate > 1

    def compare(self, step: int, last_good: str) -> None:
        """Compare them after `step` steps; all ranks together.

        last_good: which checkpoint there is, in words. Raises BadDataError, on all ranks, where
        some differ, and names them.
        """
        if not self._are_there or self._compared == step:
            return
        odd = odd_ranks(self.world.gather_ints(digest(self._tensors())), self.layout.shard)
        if odd:
            raise self._error(step, odd, last_good)
        self._compared = step

    def _tensors(self) -> Iterable[Tensor]:
        model, average = self.train_step.model, self.train_step.average
        yield from model.parameters()
        yield from named_state(model, self.train_step.optimizer).values()
        if average is not None:
            yield from average.weights.values()

    def _error(self, step: int, odd: list[int], last_good: str) -> BadDataError:
        hosts = self.world.gather_texts(socket.gethostname())
        named = ", ".join(f"{rank} on {hosts[rank]}" for rank in odd[:3])
        ranks = f"rank {named} has" if len(odd) == 1 else f"ranks {named} have"
        error = BadDataError(
            f"{ranks} other weights than the copies of them after step {step}: a bit has flipped; "
            f"nothing is saved, {last_good}. Test that machine, then type the same command"
        )
        error.agreed = True
        return error
