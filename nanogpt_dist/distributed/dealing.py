"""Whole matrices, each on one rank: dealt out over the ranks that hold parts or copies of them.

The ranks are `replicate` rows and `shard` columns, as in a Layout of fsdp: a row holds one copy
together, its ranks the rows of each parameter in turn (FSDP2's Shard(0)). ddp is one column, and a
single process one rank. A matrix may be some rows of a parameter, as queries are of c_attn.weight.

A matrix travels within a row, in all_to_all: parts to the rank that has it whole, and back again;
then along the columns, in all_gather. So no two ranks do the same work on one matrix.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from nanogpt_dist.distributed.memory import MOST
from nanogpt_dist.distributed.world import World, is_dtensor


@dataclass(frozen=True)
class Matrix:
    """Rows first, first + 1, … of parameter number `parameter`, which has `of_rows` rows."""

    parameter: int
    first: int
    rows: int
    columns: int
    of_rows: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def cost(self) -> int:
        """Of orthogonalizing it, in proportion: two products with M·R·C multiplications, one M³."""
        small = min(self.rows, self.columns)
        return small * (2 * self.numel + small * small)

    def held(self, rank: int, ranks: int) -> tuple[int, int, int]:
        """Its rows [low, high) on one of the ranks of a shard row, and at which row of that rank.

        As torch.chunk() cuts: the last ranks may have fewer rows, or none.
        """
        if ranks == 1:  # asked for each matrix in each step, of which a small model has quick ones
            return 0, self.rows, self.first
        each = -(-self.of_rows // ranks)
        begin, end = min(rank * each, self.of_rows), min((rank + 1) * each, self.of_rows)
        low = max(begin, self.first)
        high = max(low, min(end, self.first + self.rows))
        return low - self.first, high - self.first, low - begin


@dataclass(frozen=True)
class Grid:
    """The ranks, and this one at (row, column). Groups: of its row, and of its column."""

    replicate: int = 1
    shard: int = 1
    row: int = 0
    column: int = 0
    row_group: dist.ProcessGroup | None = None
    column_group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        return self.replicate * self.shard

    @property
    def rank(self) -> int:
        """This one's number among them, row by row."""
        return self.row * self.shard + self.column


def grid_of(parameter: Tensor, world: World | None) -> Grid:
    """The Grid over which `parameter` is sharded or copied; world: None for one process."""
    if not is_dtensor(parameter):
        if world is None or world.size == 1:
            return Grid()
        return Grid(replicate=world.size, row=world.rank, column_group=dist.group.WORLD)
    mesh = parameter.device_mesh
    if mesh.ndim == 1:
        return Grid(shard=mesh.size(), column=mesh.get_local_rank(), row_group=mesh.get_group())
    return Grid(
        *(mesh.size(0), mesh.size(1), mesh.get_local_rank(0), mesh.get_local_rank(1)),
        *(mesh.get_group(1), mesh.get_group(0)),
    )


@functools.lru_cache
def deal(matrices: tuple[Matrix, ...], ranks: int) -> tuple[tuple[tuple[Matrix, ...], ...], ...]:
    """[round][rank] → its matrices, at most MOST elements, or one; equal on all ranks.

    The next costliest goes to who has least to do. Those of one shape are neighbours.
    """
    mine: list[list[Matrix]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for matrix in sorted(matrices, key=lambda m: (-m.cost, m.rows, m.parameter, m.first)):
        rank = load.index(min(load))
        mine[rank].append(matrix)
        load[rank] += matrix.cost
    cut = [_rounds(sorted(each, key=lambda m: (-m.cost, m.rows))) for each in mine]
    rounds = max(map(len, cut))
    return tuple(tuple(each[at] if at < len(each) else () for each in cut) for at in range(rounds))


def _rounds(matrices: list[Matrix]) -> list[tuple[Matrix, ...]]:
    found: list[list[Matrix]] = []
    elements = MOST
    for matrix in matrices:
        if elements + matrix.numel > MOST:
            found.append([])
            elements = 0
        found[-1].append(matrix)
        elements += matrix.numel
    return [tuple(each) for each in found]


def total(matrices: Sequence[Matrix]) -> int:
    """Elements of all of them."""
    return sum(matrix.numel for matrix in matrices)


def parts(matrices: Sequence[Matrix], rank: int, ranks: int) -> int:
    """Elements of all of them that one rank of a row holds."""
    return sum((m.held(rank, ranks)[1] - m.held(rank, ranks)[0]) * m.columns for m in matrices)


def gather_whole(held: Tensor, each: Sequence[Sequence[Matrix]], grid: Grid) -> Tensor:
    """This rank's matrices, whole, one behind the other; all ranks of a row together.

    held: (elements,) this rank's rows of the matrices of each rank of its row, in that order.
    """
    if grid.shard == 1:
        return held
    mine = each[grid.column]
    sizes = [parts(mine, rank, grid.shard) for rank in range(grid.shard)]
    received = held.new_empty(sum(sizes))
    sent = [parts(theirs, grid.column, grid.shard) for theirs in each]
    dist.all_to_all_single(received, held, sizes, sent, group=grid.row_group)
    found = held.new_empty(total(mine))
    for rank, part in enumerate(received.split(sizes)):
        for ours, theirs in _pairs(mine, rank, grid.shard):
            found[ours].copy_(part[theirs])
    return found


def give_back(whole: Tensor, each: Sequence[Sequence[Matrix]], grid: Grid) -> Tensor:
    """gather_whole() the other way round: (elements,) this rank's rows of what all ranks made."""
    if grid.shard == 1:
        return whole
    mine = each[grid.column]
    sizes = [parts(mine, rank, grid.shard) for rank in range(grid.shard)]
    sent = whole.new_empty(sum(sizes))
    for rank, part in enumerate(sent.split(sizes)):
        for ours, theirs in _pairs(mine, rank, grid.shard):
            part[theirs].copy_(whole[ours])
    received = [parts(theirs, grid.column, grid.shard) for theirs in each]
    held = whole.new_empty(sum(received))
    dist.all_to_all_single(held, sent, received, sizes, group=grid.row_group)
    return held


def copy_to_all(held: Tensor, sizes: Sequence[int], grid: Grid) -> list[Tensor]:
    """What each rank of a column holds, by row; all ranks of a column together.

    sizes: elements that each of them has.
    """
    if grid.replicate == 1:
        return [held]
    most = max(sizes)
    padded = held if held.numel() == most else held.new_zeros(most)
    if padded is not held:
        padded[: held.numel()] = held
    every = list(held.new_empty(grid.replicate, most))
    dist.all_gather(every, padded, group=grid.column_group)
    return [part[:size] for part, size in zip(every, sizes, strict=True)]


def _pairs(matrices: Sequence[Matrix], rank: int, ranks: int) -> list[tuple[slice, slice]]:
    """For each matrix: where a rank's rows lie in the whole ones, and in that rank's parts."""
    found = []
    start, at = 0, 0
    for matrix in matrices:
        low, high, _ = matrix.held(rank, ranks)
        size = (high - low) * matrix.columns
        begin = start + low * matrix.columns
        found.append((slice(begin, begin + size), slice(at, at + size)))
        start += matrix.numel
        at += size
    return found
