"""Bigrams, smear and value embeddings: which rows are read, and what they begin as."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.embedding import bigram_row, embeddings_before, ids_before
from nanogpt_dist.model.gpt import GPT

SMALL: dict[str, Any] = {
    "block_size": 12,
    "vocab_size": 29,
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 32,
}
IDS = torch.randint(29, (2, 12), generator=torch.Generator().manual_seed(2))


def test_each_pair_has_a_row_of_its_own_where_there_are_enough() -> None:
    V = 13
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    rows = bigram_row(pairs[:, 0], pairs[:, 1], V, V * V + 5)
    assert rows.tolist() == list(range(V * V))


def test_with_fewer_rows_pairs_are_shared_out_evenly() -> None:
    V, R = 400, 5000
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))  # 32 for each row
    counts = torch.bincount(bigram_row(pairs[:, 0], pairs[:, 1], V, R), minlength=R)
    assert len(counts) == R
    # as if drawn: Poisson's deviation is √32 = 5.7
    assert 0.8 < float(counts.double().std()) / 32**0.5 < 1.3
    for first in (0, 1, 399):  # and those of one token do not meet in a few rows
        assert len(bigram_row(pairs[:, 0], pairs[:, 1], V, R)[pairs[:, 0] == first].unique()) > 350


@given(
    before=st.integers(0, 2**24 - 1),
    token=st.integers(0, 2**24 - 1),
    rows=st.integers(1, 2**28),
)
def test_a_row_is_there_for_the_largest_ids(before: int, token: int, rows: int) -> None:
    found = bigram_row(torch.tensor([before]), torch.tensor([token]), 2**24, rows)
    mixed = (before * 2_654_435_761 + token * 2_246_822_519) % 2**32
    mixed = (mixed ^ mixed >> 15) * 2_246_822_519 % 2**32
    assert found.item() == mixed * rows // 2**32 < rows


def test_what_stands_before_ends_at_the_start_of_a_document() -> None:
    idx, position_ids = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 1, 0, 1]])
    assert ids_before(idx, torch.arange(4)).tolist() == [[0, 5, 6, 7]]
    assert ids_before(idx, position_ids).tolist() == [[0, 5, 0, 7]]
    x = idx[..., None].float()
    assert embeddings_before(x, position_ids).flatten().tolist() == [0, 5, 0, 7]


@pytest.mark.parametrize(
    "options", [{"smear": True}, {"bigram_rows": 100}, {"residual_scalars": True}], ids=str
)
def test_at_first_the_model_is_what_it_is_without(options: dict[str, Any]) -> None:
    given, plain = (
        GPT(ModelConfig(**{**SMALL, **more})).init_weights(1).eval() for more in (options, {})
    )
    assert given.num_params() > plain.num_params()
    assert torch.equal(given.logits(IDS), plain.logits(IDS))


@pytest.mark.parametrize(("n_layer", "expected"), [(1, [0]), (4, [1, 3]), (5, [0, 2, 4])])
def test_every_other_block_has_value_embeddings_and_the_last_does(
    n_layer: int,
    expected: list[int],
) -> None:
    config = ModelConfig(**{**SMALL, "n_layer": n_layer, "value_embeddings": True, "n_kv_head": 2})
    model = GPT(config).init_weights(1)
    names = [name for name, _ in model.named_parameters() if "value_embedding.weight" in name]
    assert names == [f"transformer.h.{i}.attn.value_embedding.weight" for i in expected]
    assert model.get_parameter(names[-1]).shape == (29, 2 * 8)
    assert model.get_parameter(names[-1]).any()


def test_a_window_costs_the_tokens_that_it_has() -> None:
    shape = {**SMALL, "n_layer": 4, "window_pattern": "SSL"}
    plain, short = (GPT(ModelConfig(**{**shape, "sliding_window": window})) for window in (None, 3))
    # layers 0 and 1 attend to 3 tokens of 12: 12 · width · tokens each
    assert plain.flops_per_token() - short.flops_per_token() == 12 * 32 * 2 * (12 - 3)
    assert short.flops_per_token(2) == plain.flops_per_token(2)


def test_embeddings_cost_no_arithmetic() -> None:
    plain = GPT(ModelConfig(**SMALL)).flops_per_token()
    for options in ({"bigram_rows": 5000}, {"value_embeddings": True}):
        more = GPT(ModelConfig(**{**SMALL, **options})).flops_per_token() - plain
        assert 0 <= more <= 6 * 2, options  # the scales
    untied = GPT(ModelConfig(**{**SMALL, "tied_head": False}))
    assert untied.flops_per_token() == plain
