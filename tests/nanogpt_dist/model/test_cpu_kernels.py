"""The passes made for CPUs against the plain ones, and their derivatives against differences in
float64.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.model import cpu_kernels
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ONE

CPU, BF16, F32, F64 = torch.device("cpu"), torch.bfloat16, torch.float32, torch.float64
SMALL = {
    "vocab_size": 61,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 48,
    "batch_size": 4,
    "device": "cpu",
}


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    ).requires_grad_()


def plain_attention(qkv: Tensor, n_head: int) -> Tensor:
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    q, k, v = (t.view(B, T, n_head, C // n_head).transpose(1, 2) for t in qkv.split(C, dim=2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)


def causal_attention(
    qkv: Tensor, n_head: int, dropout: float = 0.0, window: int | None = None
) -> Tensor:
    """Of queries, keys and values side by side: (B, T, 3C) → (B, T, C)."""
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    q, k, v = (t.view(B, T, n_head, C // n_head).transpose(1, 2) for t in qkv.split(C, dim=2))
    return cpu_kernels.causal_attention(q, k, v, dropout, window).transpose(1, 2).reshape(B, T, C)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few tokens and few logits are several blocks."""
    monkeypatch.setattr(cpu_kernels, "QUERIES", 4)
    monkeypatch.setattr(cpu_kernels, "LOGITS", 30)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("T", [1, 4, 6])
def test_attentions_derivative(T: int, dropout: float) -> None:
    def f(qkv: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same mask each time
        return causal_attention(qkv, 2, dropout)

    assert torch.autograd.gradcheck(f, normal(2, T, 12, dtype=F64))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_the_derivative_of_attention_in_a_window(window: int) -> None:
    def f(qkv: Tensor) -> Tensor:
        return causal_attention(qkv, 2, window=window)

    assert torch.autograd.gradcheck(f, normal(2, 6, 12, dtype=F64))


@settings(max_examples=25, deadline=None)
@given(T=st.integers(1, 300), window=st.integers(1, 310), seed=st.integers(0, 99))
def test_attention_in_a_window_is_torchs_own(T: int, window: int, seed: int) -> None:
    ours, theirs = normal(2, T, 48, seed=seed), normal(2, T, 48, seed=seed)
    incoming = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(seed))
    q, k, v = (t.view(2, T, 2, 8).transpose(1, 2) for t in theirs.split(16, dim=2))
    at = torch.arange(T)
    mask = (at[:, None] >= at) & (at[:, None] - at < window)
    expected = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(2, T, 16)
    y = causal_attention(ours, 2, window=window)
    y.backward(incoming)
    expected.backward(incoming)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_window_leaves_out_the_keys_that_no_query_of_a_block_sees() -> None:
    scores = {
        window: sum(
            (rows.stop - rows.start) * (seen.stop - seen.start)
            for rows, seen in cpu_kernels._blocks(1024, window)
        )
        for window in (None, 1024, 128, 1)
    }
    # 8 blocks of 128 queries
    assert scores[None] == scores[1024] == 128 * 128 * 36
    assert scores[128] == 128 * (128 + 7 * 255)
    assert scores[1] == 128 * 128 * 8


@pytest.mark.usefixtures("small_blocks")
def test_the_heads_derivative() -> None:
    targets = torch.tensor([0, 6, -100, 3, 2, -100, 6])

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return cpu_kernels.linear_cross_entropy(x, weight, targets)

    assert torch.autograd.gradcheck(f, (normal(7, 5, dtype=F64), normal(7, 5, dtype=F64, seed=1)))


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), T=st.integers(1, 300), n_head=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_attention_is_torchs_own(B: int, T: int, n_head: int, seed: int) -> None:
    ours, theirs = normal(B, T, n_head * 24, seed=seed), normal(B, T, n_head * 24, seed=seed)
    incoming = torch.randn(B, T, n_head * 8)
    y, expected = causal_attention(ours, n_head), plain_attention(theirs, n_head)
    y.backward(incoming)
    expected.backward(incoming)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    N=st.integers(1, 70), V=st.integers(1, 90), factor=st.floats(-3, 3), ignored=st.floats(0, 0.9)
)
def test_the_head_is_torchs_own(N: int, V: int, factor: float, ignored: float) -> None:
    targets = torch.randint(V, (N,)).masked_fill(torch.rand(N) < ignored, -100)
    targets[0] = V - 1
    x, w, their_x, their_w = normal(N, 8), normal(V, 8, seed=1), normal(N, 8), normal(V, 8, seed=1)
    loss = cpu_kernels.linear_cross_entropy(x, w, targets)
    expected = F.cross_entropy(their_x @ their_w.t(), targets)
    (loss * factor).backward()
    (expected * factor).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, their_x.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad, their_w.grad, rtol=1e-4, atol=1e-6)


def test_only_what_is_asked_for_is_computed() -> None:
    x, w, targets = normal(6, 4).detach(), normal(9, 4), torch.arange(6)
    cpu_kernels.linear_cross_entropy(x, w, targets).backward()
    assert w.grad is not None
    with torch.no_grad():
        assert cpu_kernels.linear_cross_entropy(x, w, targets) == pytest.approx(
            F.cross_entropy(x @ w.t(), targets).item()
        )


@pytest.mark.usefixtures("small_blocks")
def test_rows_without_an_id_take_no_part() -> None:
    x, w, targets = normal(7, 5), normal(9, 5, seed=1), torch.tensor([0, 6, -100, 3, 2, -100, 6])
    loss = cpu_kernels.linear_cross_entropy(x, w, targets, n_vocab=7)
    plain = F.cross_entropy(x @ w[:7].t(), targets)
    torch.testing.assert_close(loss, plain)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (x, w)), torch.autograd.grad(plain, (x, w)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def train_step(dtype: torch.dtype, **changes: object) -> TrainStep:
    config = resolve(
        {
            **SMALL,
            "gradient_accumulation_steps": 2,
            "learning_rate": 3e-3,
            "warmup_iters": 20,
            "max_iters": 200,
            **changes,
        }
    )
    return TrainStep(config, ONE, plan_layout(config, ONE, training_bytes(config)), dtype)


def tokens(config: TrainConfig, step: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of an update: sequences that can be learnt, each token a function of the one
    before or noise.
    """
    torch.manual_seed(step)
    ids = torch.randint(61, (config.global_batch_size, 49))
    for i in range(1, 49):
        ids[:, i] = torch.where(torch.rand(len(ids)) < 0.8, (ids[:, i - 1] * 7 + 3) % 61, ids[:, i])
    return [(part[:, :-1].numpy(), part[:, 1:].numpy()) for part in ids.chunk(count)]


def losses(dtype: torch.dtype, count: int = 1, **changes: object) -> Tensor:
    made = train_step(dtype, **changes)
    return torch.tensor([made.step(i, tokens(made.config, i, count)).loss for i in range(200)])


@pytest.mark.thorough
def test_a_run_of_200_updates_is_as_near_to_float32_as_autocasts() -> None:
    exact, fast, autocast = losses(F32), losses(BF16), losses(BF16, cpu_fast=False)
    assert exact[-1] < exact[0] - 0.4  # it learns
    noise = (autocast - exact).abs()
    assert (fast - exact).abs().mean() < 1.5 * noise.mean()
    assert (fast - exact).abs().max() < 2 * noise.max()
    assert not torch.equal(fast, autocast)


def test_dropout_is_applied_in_the_fast_pass() -> None:
    one, two = train_step(BF16, dropout=0.5), train_step(BF16, dropout=0.0)
    batch = tokens(one.config, 0, 1)
    assert one.step(0, batch).grad_norm != pytest.approx(two.step(0, batch).grad_norm, rel=0.01)


def test_joined_micro_batches_make_the_same_gradient() -> None:
    apart, joined = train_step(BF16), train_step(BF16)
    one, other = (
        apart.step(0, tokens(apart.config, 0, 2)),
        joined.step(0, tokens(joined.config, 0, 1)),
    )
    assert one.loss == pytest.approx(other.loss, abs=1e-3)
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=0.01)


def test_evaluation_in_float32_is_the_plain_one() -> None:
    fast, plain = train_step(BF16), train_step(F32)
    ids = torch.arange(48)[None]
    with torch.no_grad():
        assert torch.equal(fast.model.logits(ids), plain.model.logits(ids))
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
