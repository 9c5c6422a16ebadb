"""The head's losses against each other, and against float64: values, gradients, memory."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model import cpu_kernels, head_loss
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.model.kernels import Kernels

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
N, V, C, IDS = 300, 320, 64, 301


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few tokens are several chunks, the last of them a short one."""
    monkeypatch.setattr(head_loss, "LOGITS", V * 128)


def inputs(seed: int = 0, ignored: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=generator)
    weight = torch.randn(V, C, generator=generator) * 0.3
    targets = torch.randint(0, IDS, (N,), generator=generator)
    if ignored:
        targets[5] = head_loss.IGNORED
    return x, weight, targets


def results(
    loss_of: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    low: torch.dtype | None = None,
    scale: float = 1.0,
) -> list[Tensor]:
    """The loss, and the gradients of x and weight; `low`: under autocast."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", low, enabled=low is not None):
        loss = loss_of(x, weight, targets, IDS)
    (loss * scale).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [loss.detach(), x.grad / scale, weight.grad / scale]


def distance(a: Tensor, b: Tensor) -> float:
    """Relative, of all numbers together."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def squashing(loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return functools.partial(loss_of, softcap=2.0)


LOSSES = [head_loss.whole, head_loss.chunked, cpu_kernels.linear_cross_entropy]


@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda function: function.__name__)
def test_squashed_logits_give_the_loss_and_gradients_of_autograd(
    loss_of: Callable[..., Tensor],
) -> None:
    x, weight, targets = inputs()
    wide = [each.double().requires_grad_() for each in (x, weight)]
    logits = 2.0 * torch.tanh((wide[0] @ wide[1][:IDS].t()) / 2.0)
    assert (logits.abs() > 1.9).any(), "some logits are where tanh is flat"
    expected = F.cross_entropy(logits, targets)
    plain = [expected.detach(), *torch.autograd.grad(expected, wide)]
    for low, near in ((None, 1e-6), (BF16, 0.02)):
        found = results(squashing(loss_of), x, weight, targets, low)
        assert all(distance(a, b) < near for a, b in zip(found, plain, strict=True)), low
    without = results(loss_of, x, weight, targets)
    assert distance(without[0], plain[0]) > 0.01


@pytest.mark.parametrize("loss_of", LOSSES[1:], ids=lambda function: function.__name__)
def test_the_derivative_of_squashed_logits(loss_of: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (
        torch.randn(7, 4, generator=generator, dtype=F64).requires_grad_() for _ in range(2)
    )
    targets = torch.tensor([0, 4, head_loss.IGNORED, 3, 2, head_loss.IGNORED, 4])
    assert torch.autograd.gradcheck(
        lambda x, weight: loss_of(x, weight, targets, 5, 1.5), (x, weight)
    )


def test_rows_without_an_id_stay_impossible_when_squashed() -> None:
    x, weight, _ = inputs()
    logits = head_loss.logits_of(x, weight, IDS, 2.0)
    assert logits[:, IDS:].eq(-torch.inf).all()
    assert logits[:, :IDS].abs().max() <= 2
    assert head_loss.squashed(x.to(BF16), 2.0).dtype == F32


def test_in_float32_both_are_equal_to_rounding() -> None:
    given = inputs()
    exact = results(head_loss.whole, given[0].double(), given[1].double(), given[2])
    for name in ("whole", "chunked"):
        found = results(getattr(head_loss, name), *given)
        assert all(distance(a, b) < 1e-6 for a, b in zip(found, exact, strict=True)), name


@pytest.mark.parametrize(("low", "scale"), [(BF16, 1.0), (BF16, 1 / 40), (F16, 65536.0)])
@pytest.mark.parametrize("seed", range(3))
def test_under_autocast_chunks_are_no_further_from_the_exact_result(
    low: torch.dtype,
    scale: float,
    seed: int,
) -> None:
    given = inputs(seed)
    exact = results(head_loss.whole, given[0].double(), given[1].double(), given[2])
    plain = results(head_loss.whole, *given, low, scale)
    found = results(head_loss.chunked, *given, low, scale)
    assert abs(float(found[0] - plain[0])) < 1e-6 * float(plain[0])
    for mine, whole, wanted in zip(found[1:], plain[1:], exact[1:], strict=True):
        assert distance(mine, wanted) <= distance(whole, wanted)


def test_in_bfloat16_throughout_as_fsdp_gathers_it() -> None:
    x, weight, targets = inputs()
    x, weight = x.to(BF16), weight.to(BF16)
    exact = results(head_loss.whole, x.double(), weight.double(), targets)
    plain, found = (
        results(getattr(head_loss, name), x, weight, targets) for name in ("whole", "chunked")
    )
    assert [part.dtype for part in found] == [part.dtype for part in plain] == [F32, BF16, BF16]
    for mine, whole, wanted in zip(found[1:], plain[1:], exact[1:], strict=True):
        assert distance(mine, wanted) <= distance(whole, wanted)


def test_parts_that_cancel_lose_nothing_of_the_weights_gradient() -> None:
    """Rounded to bfloat16 before they are added up, they would leave as much as is there."""
    x, weight, targets = inputs(ignored=False)
    x[128:256] = -x[:128]
    targets[128:256] = targets[:128]
    x[:256] *= 100
    weight *= 1e-4
    exact = results(head_loss.whole, x.double(), weight.double(), targets)
    plain, found = (
        results(getattr(head_loss, name), x, weight, targets, BF16) for name in ("whole", "chunked")
    )
    assert distance(found[2], exact[2]) <= distance(plain[2], exact[2])


def test_a_rare_tokens_gradient_is_not_lost_in_float16() -> None:
    """Its probability is below float16's smallest number."""
    x, weight, targets = torch.ones(4, 1), torch.zeros(64, 1), torch.zeros(4, dtype=torch.int64)
    weight[7] = -17.5  # e^-17.5 / 63 = 4e-10, of 256 of which float16 has 1e-7
    found = results(head_loss.chunked, x, weight, targets, F16)
    assert float(found[2][7]) > 0


@given(
    tokens=st.integers(1, 700),
    rows=st.integers(2, 500),
    extra=st.integers(0, 3),
    ignored=st.booleans(),
)
@settings(max_examples=40)
def test_any_size_gives_the_gradient_of_the_logits_loss(
    tokens: int,
    rows: int,
    extra: int,
    ignored: bool,
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 3, generator=generator, dtype=F64)
    weight = torch.randn(rows + extra, 3, generator=generator, dtype=F64)
    targets = torch.randint(0, rows, (tokens,), generator=generator)
    if ignored:
        targets[1::2] = head_loss.IGNORED
    x.requires_grad_(), weight.requires_grad_()
    losses = [
        head_loss.chunked(x, weight, targets, rows),
        F.cross_entropy((x @ weight.t())[:, :rows], targets),
    ]
    assert torch.allclose(*losses, rtol=1e-12)
    for one, other in zip(
        *(torch.autograd.grad(each, (x, weight)) for each in losses), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_no_gradient_is_made_that_nobody_wants() -> None:
    x, weight, targets = inputs()
    with torch.no_grad():
        assert not head_loss.chunked(x, weight, targets, IDS).requires_grad
    weight.requires_grad_()
    head_loss.chunked(x, weight, targets, IDS).backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_has_the_same_gradients_with_padded_and_tied_embeddings(tied: bool) -> None:
    config = ModelConfig(
        vocab_size=V, n_layer=1, n_head=2, n_embd=C, block_size=75, tied_head=tied, dropout=0.0
    )
    ids = torch.randint(0, IDS, (4, 75), generator=torch.Generator().manual_seed(3))
    found = {}
    for name in ("whole", "chunked", None):
        loss_of = None if name is None else getattr(head_loss, name)
        model = GPT(config, IDS, Kernels(head_loss=loss_of)).init_weights(0)
        logits, loss = model(ids, ids.roll(-1, 1))
        assert (logits is None) == (name is not None)
        assert loss is not None
        loss.backward()
        found[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(found["whole"], found[None], strict=True))
    assert all(distance(a, b) < 2e-6 for a, b in zip(found["chunked"], found[None], strict=True))
    assert not found["chunked"][1][IDS:].any() if not tied else True


@pytest.mark.parametrize("low", [None, BF16])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_one_graph_it_is_the_same(backend: str, low: torch.dtype | None) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(head_loss.chunked, backend=backend, fullgraph=True, dynamic=False)
    given = inputs()
    expected, found = (results(f, *given, low) for f in (head_loss.chunked, compiled))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- memory, by shapes alone


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it hold at a time, and the largest one's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.bytes = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.bytes = max(self.bytes, sum(self.live.values()))
        return out


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("low", [F32, BF16])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_peak_is_what_is_told(
    chunked: bool,
    low: torch.dtype,
    softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    N, V, C = 12 * 1024, 50304, 768
    monkeypatch.setattr(head_loss, "LOGITS", 2**27)

    def product(a: Tensor, b: Tensor) -> Tensor:  # as on cuda: without float32 copies of a and b
        return torch.empty(a.size(0), b.size(1), dtype=F32)

    monkeypatch.setattr(head_loss, "_product", product)
    with FakeTensorMode():
        x = torch.randn(N, C, dtype=low, requires_grad=True)
        weight = torch.randn(V, C, dtype=low, requires_grad=True)
        targets = torch.randint(0, V, (N,))
        with Peak() as peak:
            loss_of = head_loss.chunked if chunked else head_loss.whole
            loss_of(x, weight, targets, V, softcap).backward()
    squashed = softcap is not None
    expected = head_loss.peak_bytes(N, V, C, low, chunked, compiled=False, softcap=squashed)
    grads = (N + V) * C * low.itemsize
    assert 0.75 * expected < peak.bytes <= expected + grads
    assert chunked == (peak.largest < N * V)


def test_what_is_large_is_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("whole", "chunked"):
        monkeypatch.setattr(head_loss, name, lambda *_, name=name: calls.append(name))
    x, weight, targets = inputs()
    for at_most in (12 * N * V, 12 * N * V - 1):
        monkeypatch.setattr(head_loss, "WHOLE_AT_MOST", at_most)
        head_loss.by_size(x, weight, targets, IDS)
    assert calls == ["whole", "chunked"]


@given(tokens=st.integers(1, 100_000), rows=st.sampled_from([65, 50304, 151936, 2**29]))
def test_chunks_are_about_equal_and_small_enough(tokens: int, rows: int) -> None:
    n = head_loss.chunk_tokens(tokens, rows)
    assert 1 <= n <= tokens
    assert n * rows <= head_loss.LOGITS + head_loss.ALIGNED * rows


@pytest.mark.parametrize("tokens", [0, 3])
def test_where_no_target_counts_there_is_no_gradient(tokens: int) -> None:
    x = torch.ones(tokens, 4, requires_grad=True)
    gradients = []
    for loss in (head_loss.whole, head_loss.chunked):
        weight = torch.ones(5, 4, requires_grad=True)
        found = loss(x, weight, torch.full((tokens,), -100), 5)
        assert found.isnan()
        found.backward()
        assert weight.grad is not None
        gradients.append(weight.grad)
    assert torch.equal(*gradients)
