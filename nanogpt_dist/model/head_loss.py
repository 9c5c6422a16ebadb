"""The head's loss, cross-entropy of x weightᵀ, and its implementations side by side.

All have one signature, that of `HeadLoss`, and return the loss alone: no logits leave a training
pass. kernels.py says which one a model takes; the one for CPUs is in cpu_kernels.py.

`whole` writes all logits out. `chunked` takes some tokens at a time, and makes the gradients of x
and weight where the loss is: only a chunk's logits are ever there. It makes the same three products
of N·V·C; to keep nothing and compute the logits again in the backward pass would be a fourth. What
it keeps instead, N·C and V·C numbers, the backward pass uses first of all.

Shape letters: N = B·T tokens, C = n_embd, V = vocab_size, n tokens of a chunk.

Sources: Hsu et al. 2024, "Liger Kernel", §3.2 (chunks whose gradient is made in the forward pass);
Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS = 2**28  # of a chunk, at most; with fewer, adding up the weight's gradient would take longer
ALIGNED = 128  # a chunk's tokens are a multiple of it, as matrix units like it
WHOLE_AT_MOST = 4 * 2**30  # bytes that by_size() lets whole() hold
IGNORED = -100  # as a target: the token does not count
# What a chunk's gradient is multiplied with before it is rounded to float16, whose smallest number
# is 6e-8: a rare token's probability would be 0.
FLOAT16_SCALE = 256.0


class HeadLoss(Protocol):
    """x (N, C), weight (V, C), targets (N,) int64 → the mean cross-entropy, a scalar, in nats.

    n_vocab: logits from there on do not count. softcap: ± to which logits are squashed. Products
    are in the autocast type, where there is one.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        n_vocab: int,
        softcap: float | None = None,
    ) -> Tensor: ...


def whole(
    x: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> Tensor:
    """By way of all logits, (N, V)."""
    return F.cross_entropy(logits_of(x, weight, n_vocab, softcap).float(), targets)


def logits_of(x: Tensor, weight: Tensor, n_vocab: int, softcap: float | None = None) -> Tensor:
    """x weightᵀ, (..., C), (V, C) → (..., V), −∞ from n_vocab on.

    The −∞ of rows without an id is the product's bias, which costs no time.
    """
    if softcap is None:
        return F.linear(x, weight, _padding(weight, n_vocab))
    logits = squashed(F.linear(x, weight), softcap)
    logits[..., n_vocab:] = float("-inf")
    return logits


def squashed(logits: Tensor, softcap: float) -> Tensor:
    """softcap · tanh(logits / softcap), between ± softcap, in float32 at least; same shape."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.tanh(logits.to(wide) / softcap) * softcap


def _padding(weight: Tensor, n_vocab: int) -> Tensor | None:
    if n_vocab >= weight.size(0):
        return None
    bias = weight.new_zeros(weight.size(0))
    bias[n_vocab:] = float("-inf")
    return bias


def chunked(
    x: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> Tensor:
    """Some tokens at a time: never (N, V), and in float32 nothing larger than a chunk's logits."""
    low = _product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(x, weight, targets, n_vocab, softcap, low)


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def by_size(
    x: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> Tensor:
    """chunked() where whole() would hold more than WHOLE_AT_MOST bytes."""
    (N, C), V = x.shape, len(weight)
    low = _product_dtype(x)
    compiled = torch.compiler.is_compiling()
    much = peak_bytes(N, V, C, low, False, compiled, softcap is not None) > WHOLE_AT_MOST
    return (chunked if much else whole)(x, weight, targets, n_vocab, softcap)


def peak_bytes(
    N: int,
    V: int,
    C: int,
    dtype: torch.dtype,
    chunked: bool,
    compiled: bool,
    softcap: bool = False,
) -> int:
    """Bytes that the loss and its gradients hold at most, beside x, weight and .grad.

    dtype: of the products. Logits and their gradient; without a compiler, which would fuse them,
    the float32 numbers on the way, too. softcap: whether logits are squashed.
    """
    more = 4 if softcap else 0  # tanh, in float32
    if not chunked:
        return N * V * (2 * dtype.itemsize if compiled else 12 + more)
    logits = chunk_tokens(N, V) * V * (2 * dtype.itemsize if compiled else 8 + more)
    return logits + 2 * 4 * (V + N) * C  # the gradients of weight and x, and what is added to them


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are of the sum of the losses until the backward pass, and in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        n_vocab: int,
        softcap: float | None,
        low: torch.dtype,
    ) -> Tensor:
        dx_wanted, dw_wanted = ctx.needs_input_grad[:2]
        wide = torch.promote_types(low, torch.float32)
        a, w = x.to(low), weight.to(low)
        padding = _padding(w, n_vocab) if softcap is None else None
        scale = FLOAT16_SCALE if low == torch.float16 else 1.0
        total = torch.zeros((), dtype=wide, device=x.device)
        dx: list[Tensor] = []
        dw: Tensor | None = None
        n = chunk_tokens(len(x), len(w))
        for some, target in zip(a.split(n), targets.split(n), strict=True):  # (n, C), (n,)
            logits, slope = F.linear(some, w, padding), None  # (n, V)
            if softcap is not None:
                logits, slope = _squashed_with_slope(logits, n_vocab, softcap)
            losses, gradient = _chunk(logits, target, scale)  # (n,), (n, V)
            del logits
            if slope is not None:
                gradient = gradient.mul_(slope).to(low)
            del slope
            total = total + losses.sum()
            if dx_wanted:
                dx.append(_product(gradient, w))
            if dw_wanted:
                part = _product(gradient.t(), some)  # (V, C)
                dw = part if dw is None else dw.add_(part)
            del gradient  # before the next one is made
        count = (targets != IGNORED).sum()
        ctx.save_for_backward(torch.cat(dx) if dx_wanted else None, dw, count)
        ctx.types, ctx.scale = (x.dtype, weight.dtype), scale
        return total / count

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, count = ctx.saved_tensors
        factor = dloss / (count.clamp(min=1) * ctx.scale)  # no target counts: no gradient
        return (
            None if dx is None else (dx * factor).to(ctx.types[0]),
            None if dw is None else (dw * factor).to(ctx.types[1]),
            None,
            None,
            None,
            None,
        )


def _squashed_with_slope(logits: Tensor, n_vocab: int, softcap: float) -> tuple[Tensor, Tensor]:
    """logits_of() from its product, and what it is derived by, 1 − tanh²: (n, V), in float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    tanh = (logits.to(wide) / softcap).tanh_()
    logits = tanh * softcap
    logits[:, n_vocab:] = float("-inf")
    return logits, tanh.square_().neg_().add_(1)


def _chunk(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The losses of some tokens, and `scale` times their gradient, softmax − one_hot(target).

    (n, V), (n,) → (n,), (n, V). The gradient is rounded once, of the target as of the others.
    """
    counts = (target != IGNORED)[:, None]  # (n, 1)
    wanted = torch.where(counts, target[:, None], 0)
    top = logits.amax(1, keepdim=True).to(torch.promote_types(logits.dtype, torch.float32))
    e = (logits - top).exp_()  # (n, V)
    sums = e.sum(1, keepdim=True)  # (n, 1)
    log_p = logits.gather(1, wanted) - top - sums.log()  # (n, 1), of the targets
    gradient = e.mul_(counts * scale / sums).to(logits.dtype)
    gradient.scatter_(1, wanted, (torch.expm1(log_p) * counts * scale).to(logits.dtype))
    return torch.where(counts, -log_p, 0)[:, 0], gradient


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product whose sums stay in float32, as they are within it."""
    if a.dtype not in (torch.bfloat16, torch.float16):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def chunk_tokens(N: int, V: int) -> int:
    """Tokens of a chunk, of N with V logits each: chunks are about equal."""
    chunks = max(1, -(-N * V // LOGITS))
    return min(N, -(-N // (chunks * ALIGNED)) * ALIGNED)
