"""The schedule against nanoGPT's formula, the groups, and AdamW's update itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.training.optim import learning_rate, make_optimizer, parameter_groups


def nanogpt_rate(it: int, lr: float, min_lr: float, warmup: int, decay: int) -> float:
    """The schedule as nanoGPT's train.py states it."""
    if it < warmup:
        return lr * (it + 1) / (warmup + 1)
    if it > decay:
        return min_lr
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * (it - warmup) / (decay - warmup))) * (
        lr - min_lr
    )


@given(it=st.integers(0, 3000), warmup=st.integers(0, 500), decay=st.integers(501, 2000))
def test_the_rate_is_nanogpts(it: int, warmup: int, decay: int) -> None:
    config = load("gpt2-124m", {"warmup_iters": warmup, "lr_decay_iters": decay})
    assert learning_rate(it, config) == pytest.approx(
        nanogpt_rate(it, 6e-4, 6e-5, warmup, decay), rel=1e-12
    )


def test_the_rate_is_constant_without_decay_and_ends_at_max_iters_by_default() -> None:
    constant = load("gpt2-124m", {"decay_lr": False})
    assert {learning_rate(step, constant) for step in (0, 10, 10**6)} == {6e-4}
    config = load("gpt2-124m", {"max_iters": 100, "warmup_iters": 10})
    assert learning_rate(100, config) == config.min_lr
    assert learning_rate(99, config) > config.min_lr


def test_warm_up_beyond_the_decay_does_not_divide_by_zero() -> None:
    config = load("gpt2-124m", {"max_iters": 5, "warmup_iters": 5})
    assert [learning_rate(step, config) for step in range(7)][-1] == config.min_lr


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = GPT(load("shakespeare-char-cpu", {"bias": True}).architecture())
    decayed, kept = parameter_groups(model, 0.1)
    ids = [id(p) for group in (decayed, kept) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert len(set(ids)) == len(ids)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_two_updates_equal_adamw_by_hand() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    config = load(
        "shakespeare-char-cpu", {"n_layer": 1, "n_embd": 16, "n_head": 2, "weight_decay": 0.1}
    )
    model = GPT(config.architecture()).init_weights(1)
    optimizer = make_optimizer(model, config)
    weight = model.transformer.wte.weight
    expected, m, v = weight.detach().double(), 0.0, 0.0
    for step in (1, 2):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        m = config.beta1 * m + (1 - config.beta1) * gradient.double()
        v = config.beta2 * v + (1 - config.beta2) * gradient.double() ** 2
        m_hat, v_hat = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        expected = expected - config.learning_rate * (
            m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * expected
        )
    torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6)
