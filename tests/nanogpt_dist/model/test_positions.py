"""Positions, angles and masks of documents that share a sequence."""

import pytest
import torch

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.positions import (
    document_mask,
    rotate,
    sequence_positions,
    with_rotary_angles,
)

SMALL = ModelConfig(block_size=16, vocab_size=61, n_layer=1, n_head=2, n_embd=16)
DOCUMENTS = SMALL.model_copy(update={"intra_document": True, "eot_id": 7})
ROTARY = SMALL.model_copy(update={"rotary": True})


def test_gpt2s_positions_are_places_in_the_sequence() -> None:
    positions = sequence_positions(torch.zeros(2, 5, dtype=torch.int64), SMALL)
    assert positions.position_ids.tolist() == [0, 1, 2, 3, 4]
    assert positions.mask is positions.cos is positions.sin is None


def test_positions_and_mask_begin_anew_at_each_end_of_text() -> None:
    positions = sequence_positions(torch.tensor([[1, 2, 7, 3, 4]]), DOCUMENTS)
    assert positions.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert isinstance(positions.mask, torch.Tensor)
    assert torch.equal(positions.mask, document_mask(torch.tensor([[0, 0, 1, 1, 1]])))
    assert positions.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_a_rotary_dot_product_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(at: int, distance: int) -> float:
        one, other = (with_rotary_angles(torch.tensor([p]), ROTARY) for p in (at + distance, at))
        return float((rotate(q, one) * rotate(k, other)).sum())

    assert product(3, 5) == pytest.approx(product(0, 5), abs=1e-5)
    assert product(3, 5) != pytest.approx(product(3, 6), abs=1e-3)
