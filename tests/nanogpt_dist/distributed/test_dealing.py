"""Matrices dealt out over ranks: each once, evenly, and cut as FSDP2 cuts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.distributed import dealing
from nanogpt_dist.distributed.dealing import (
    Grid,
    Matrix,
    copy_to_all,
    deal,
    gather_whole,
    give_back,
    grid_of,
    parts,
    total,
)
from nanogpt_dist.distributed.memory import MOST
from nanogpt_dist.distributed.world import World

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


def matrices_of(shapes: list[tuple[int, int]]) -> tuple[Matrix, ...]:
    return tuple(Matrix(i, 0, rows, columns, rows) for i, (rows, columns) in enumerate(shapes))


@given(sizes, st.integers(1, 9))
def test_each_matrix_is_dealt_once_and_no_rank_has_much_more_to_do(
    shapes: list[tuple[int, int]], ranks: int
) -> None:
    matrices = matrices_of(shapes)
    rounds = deal(matrices, ranks)
    dealt = [matrix for each in rounds for mine in each for matrix in mine]
    assert sorted(dealt, key=lambda m: m.parameter) == list(matrices)
    loads = [sum(m.cost for each in rounds for m in each[rank]) for rank in range(ranks)]
    assert max(loads) <= sum(loads) / ranks + max(m.cost for m in matrices)
    assert all(len(each) == ranks for each in rounds)


def shapes_of(dealt: tuple[tuple[tuple[Matrix, ...], ...], ...]) -> list[list[list[int]]]:
    """[round][rank] → the rows of its matrices."""
    return [[[m.rows for m in mine] for mine in each] for each in dealt]


def test_the_costliest_is_dealt_first_and_those_of_one_shape_are_neighbours() -> None:
    """Costs: of M·R·C multiplications twice, and of M³ once, where M is the smaller of R and C."""
    costs = {(2, 3): 32, (3, 2): 32, (1, 4): 9, (1, 1): 3, (4, 4): 192}
    assert {shape: Matrix(0, 0, *shape, shape[0]).cost for shape in costs} == costs
    assert shapes_of(deal(matrices_of([(1, 1)] * 3 + [(4, 1)]), 2)) == [[[4], [1, 1, 1]]]
    mixed = matrices_of([(2, 3), (1, 1), (3, 2), (2, 3), (4, 4), (3, 2)])
    assert shapes_of(deal(mixed, 1)) == [[[4, 2, 2, 3, 3, 1]]]


def test_a_round_has_so_many_elements_at_most_or_one_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dealing, "MOST", 10)
    rows = [12, 5, 5, 1, 9, 11]  # of one column each, dealt by size
    found = deal.__wrapped__(matrices_of([(n, 1) for n in rows]), 1)
    assert shapes_of(found) == [[[12]], [[11]], [[9]], [[5, 5]], [[1]]]
    found = deal.__wrapped__(matrices_of([(n, 1) for n in (12, 6, 5)]), 2)
    assert shapes_of(found) == [[[12], [6]], [[], [5]]]


def test_the_grid_of_what_is_whole_on_each_rank_is_a_column() -> None:
    weight, device = torch.zeros(2), torch.device("cpu")
    assert Grid() == Grid(replicate=1, shard=1, row=0, column=0)
    assert (Grid().size, Grid().rank) == (1, 0)
    assert (Grid(2, 3, 1, 2).size, Grid(2, 3, 1, 1).rank) == (6, 4)
    for world in (None, World(0, 0, 1, device, None)):
        assert grid_of(weight, world) == Grid()
    for size in (2, 3):
        world = World(1, 1, size, device, "gloo")
        assert grid_of(weight, world) == Grid(replicate=size, row=1)


def test_the_parts_of_all_ranks_are_the_whole() -> None:
    matrices = (Matrix(0, 1, 3, 5, 7), Matrix(1, 0, 4, 2, 4))
    assert [parts(matrices, rank, 3) for rank in range(3)] == [2 * 5 + 2 * 2, 5 + 2 * 2, 0]
    assert total(matrices) == 3 * 5 + 4 * 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12])
def test_gpt2s_matrices_are_dealt_evenly_in_rounds_that_fit(ranks: int) -> None:
    C, layers = 768, 12
    shapes = [*[(C, C)] * 4 * layers, *[(4 * C, C)] * layers, *[(C, 4 * C)] * layers]
    rounds = deal(matrices_of(shapes), ranks)
    loads = [sum(m.cost for each in rounds for m in each[rank]) for rank in range(ranks)]
    assert max(loads) == min(loads)
    assert all(total(mine) <= MOST for each in rounds for mine in each)
    assert len(rounds) == -(-85 // (33 * ranks)) or ranks > 2


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.data())
def test_what_the_ranks_hold_is_what_torch_cuts(
    rows: int, columns: int, ranks: int, data: st.DataObject
) -> None:
    """A matrix that is some rows of a parameter, over ranks of which some have no row."""
    first = data.draw(st.integers(0, rows - 1))
    matrix = Matrix(0, first, data.draw(st.integers(1, rows - first)), columns, rows)
    chunks = torch.arange(rows).chunk(ranks)
    shards = [*chunks, *[torch.empty(0, dtype=torch.int64)] * (ranks - len(chunks))]
    found = []
    for rank, shard in enumerate(shards):
        low, high, begin = matrix.held(rank, ranks)
        mine = shard[begin : begin + high - low] - first
        assert mine.tolist() == list(range(low, high))
        found.append(mine.tolist())
    assert list(itertools.chain(*found)) == list(range(matrix.rows))


def test_one_rank_neither_sends_nor_copies() -> None:
    values = torch.randn(12)
    assert gather_whole(values, [matrices_of([(3, 4)])], Grid()) is values
    assert give_back(values, [matrices_of([(3, 4)])], Grid()) is values
    [copy] = copy_to_all(values, [12], Grid())
    assert copy is values
