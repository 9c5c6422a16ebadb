"""Evaluation: every token once, exact sums, the training left as it was."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.evaluation.loss import Evaluator, spread, whole_split
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT

ONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), backend=None)


@given(tokens=st.integers(2, 3000), block_size=st.integers(1, 100))
def test_the_whole_split_predicts_every_token_but_the_first_once(
    tokens: int,
    block_size: int,
) -> None:
    windows = whole_split(tokens, block_size)
    targets = np.concatenate(
        [np.arange(s + 1, s + n + 1) for s, n in zip(windows.starts, windows.lengths, strict=True)]
    )
    assert np.array_equal(targets, np.arange(1, tokens))
    assert windows.lengths.max() <= block_size


@given(tokens=st.integers(2, 3000), block_size=st.integers(1, 100), count=st.integers(1, 50))
def test_spread_windows_are_some_of_the_whole_ones_all_different(
    tokens: int,
    block_size: int,
    count: int,
) -> None:
    windows = spread(tokens, block_size, count)
    assert set(windows.starts) <= set(whole_split(tokens, block_size).starts)
    assert len(set(windows.starts)) == len(windows.starts) <= count
    assert len(set(windows.lengths)) == 1


def test_an_empty_split_is_told() -> None:
    with pytest.raises(BadDataError, match="another --val-fraction"):
        whole_split(1, 8)


@pytest.fixture
def parts(corpus: Path) -> tuple[GPT, DataFolder]:
    config = load(
        "shakespeare-char-cpu",
        {"vocab_size": 257, "n_layer": 1, "n_embd": 16, "block_size": 16, "dropout": 0.5},
    )
    return GPT(config.architecture()).init_weights(1), DataFolder.open(corpus)


def test_the_loss_is_the_mean_over_tokens_whatever_the_batch(parts: tuple[GPT, DataFolder]) -> None:
    model, data = parts
    split, lengths = data.split("val"), data.tokenizer.byte_lengths()
    windows = whole_split(split.tokens, 16)
    found = [
        Evaluator(split, windows, lengths, ONE, batch_size)(model) for batch_size in (1, 7, 64)
    ]
    ids = torch.from_numpy(split.read(0, 17).astype(np.int64))[None]
    first = model.eval()(ids[:, :-1], ids[:, 1:])[1]
    one = Evaluator(split, spread(split.tokens, 16, 1), lengths, ONE, 1)(model)
    assert first is not None
    assert one.val_loss == pytest.approx(first.item(), rel=1e-6)
    assert one.standard_error == 0.0
    for each in found:
        assert each.tokens == split.tokens - 1
        assert each.val_loss == pytest.approx(found[0].val_loss, rel=1e-6)
        assert each.perplexity == pytest.approx(math.exp(each.val_loss))
        # Bytes are tokens here, so a byte's bits are the token's.
        assert each.bits_per_byte == pytest.approx(each.val_loss / math.log(2))


def test_bits_per_byte_counts_bytes_and_not_tokens(parts: tuple[GPT, DataFolder]) -> None:
    model, data = parts
    split = data.split("val")
    windows = spread(split.tokens, 16, 4)
    twice = Evaluator(split, windows, 2 * data.tokenizer.byte_lengths(), ONE, 4)(model)
    once = Evaluator(split, windows, data.tokenizer.byte_lengths(), ONE, 4)(model)
    assert twice.bits_per_byte == pytest.approx(once.bits_per_byte / 2)


def test_evaluating_leaves_mode_and_randomness_alone(parts: tuple[GPT, DataFolder]) -> None:
    model, data = parts
    split = data.split("val")
    model.train()
    state = torch.get_rng_state()
    results = [
        Evaluator(split, spread(split.tokens, 16, 8), data.tokenizer.byte_lengths(), ONE, 4)(model)
        for _ in range(2)
    ]
    assert results[0] == results[1], "dropout was on"
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


class Apart(World):
    """A rank that sums nothing: the test does."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def any_of_each(self, *flags: bool) -> list[bool]:
        return list(flags)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_loss_is_the_same_on_ranks_that_have_no_window_left(
    ranks: int, parts: tuple[GPT, DataFolder]
) -> None:
    model, data = parts
    split = data.split("val")
    windows = spread(split.tokens, 16, 5)  # in batches of two: for three ranks one each

    def losses(world: World) -> tuple[np.ndarray, int]:
        lengths = np.ones(257, np.int64)
        return Evaluator(split, windows, lengths, world, 2)._window_losses(model.eval())

    each = [losses(Apart(rank, rank, ranks, ONE.device, None)) for rank in range(ranks)]
    alone, nbytes = losses(ONE)
    assert np.array_equal(sum(found for found, _ in each), alone)
    assert sum(count for _, count in each) == nbytes == 5 * 16
