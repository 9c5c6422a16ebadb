"""A block that keeps its input alone gives the same gradient, and is computed a second time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.gpt import GPT

SMALL = ModelConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
IDS = torch.arange(32).view(2, 16)


def gradients(mode: str | None) -> tuple[list[Tensor], list[int]]:
    """The gradient of every parameter, and how often each block was computed."""
    calls: list[int] = []

    def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        number = len(calls)
        calls.append(0)

        def counted(*inputs: Tensor) -> Tensor:
            calls[number] += 1
            return forward(*inputs)

        return counted if mode is None else checkpointed(counted, mode)

    model = GPT(SMALL, wrap_block=wrap).init_weights(1)
    torch.manual_seed(2)
    _, loss = model(IDS, IDS.roll(-1, 1))
    assert loss is not None
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], calls


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_the_gradient_is_the_same_to_the_bit_and_each_block_runs_twice(mode: str) -> None:
    expected, once = gradients(None)
    found, twice = gradients(mode)
    assert once == [1, 1]
    assert twice == [2, 2]
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_gradients_nothing_is_kept_or_computed_again() -> None:
    model = GPT(SMALL, wrap_block=lambda forward: checkpointed(forward, "full")).init_weights(1)
    with torch.no_grad():
        assert torch.equal(model.eval().logits(IDS), GPT(SMALL).init_weights(1).eval().logits(IDS))
