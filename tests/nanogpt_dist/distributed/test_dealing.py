"""Matrices dealt out over ranks: each once, evenly, and cut as FSDP2 cuts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.distributed.dealing import Grid, Matrix, copy_to_all, deal, gather_whole, total
from nanogpt_dist.distributed.memory import MOST

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
    assert copy_to_all(values, [12], Grid()) == [values]
