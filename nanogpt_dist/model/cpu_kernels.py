"""Attention and the head's loss for CPUs, as autograd Functions of a few large matrix products.

Each is torch's plain computation, up to rounding: its forward and its derivative stand side by side
here, and the tests compare them with it. kernels.py says where they are used.

Shape letters: B sequences, T tokens, C = n_embd, H = n_head, D = C / H, V = vocab_size, N = B·T,
Q queries of a block, S keys that they see, n and m rows that are worked on at a time.

Sources: Vaswani et al. 2017, "Attention Is All You Need", §3.2; Wijmans et al. 2024, "Cut Your
Losses in Large-Vocabulary Language Models" (the gradient of the logits is made where the loss is).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# in one block of attention: of what is above the diagonal, only a block's own part is computed in
# vain
QUERIES = 128
# tokens up to which written-out attention is used; its probabilities are kept, T²/2 for each head
LONGEST = 1024
LOGITS = 2**28  # at most in memory at a time
IN_CACHE = 2**20  # logits that are worked on at a time, in float32


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, window: int | None = None
) -> Tensor:
    """softmax(q kᵀ / √D + causal mask) v: 3 × (B, H, T, D) → (B, H, T, D).

    window: how many tokens a query sees at most, its own included.
    """
    return _CausalAttention.apply(q, k, v, dropout_p, window)


def _blocks(T: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that at least one of them sees."""
    for first in range(0, T, QUERIES):
        last = min(first + QUERIES, T)
        yield slice(first, last), slice(0 if window is None else max(0, first + 1 - window), last)


def keys_of_a_query(T: int) -> int:
    """Keys for which a head keeps probabilities, in the mean of T queries: (T + QUERIES) / 2."""
    blocks = _blocks(T, None)
    return -(-sum((q.stop - q.start) * (k.stop - k.start) for q, k in blocks) // T)


def _hide_beyond(s: Tensor, rows: slice, seen: slice, window: int) -> None:
    """Give −∞ to scores (BH, Q, S) of keys that the window of a query has left behind."""
    behind = rows.start + torch.arange(s.size(1))[:, None] - seen.start - torch.arange(s.size(2))
    s.masked_fill_(behind >= window, float("-inf"))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, window: int | None
    ) -> Tensor:
        B, H, T, D = q.shape
        q, k, v = (t.contiguous().view(B * H, T, D) for t in (q, k, v))
        q = q / math.sqrt(D)
        above = torch.full((QUERIES, QUERIES), float("-inf"), dtype=q.dtype).triu(1)
        y = []  # of each block (BH, Q, D)
        kept = []  # of each block: probabilities, and what dropout multiplies them with
        for rows, seen in _blocks(T, window):
            size = rows.stop - rows.start
            s = torch.bmm(q[:, rows], k[:, seen].transpose(1, 2))  # (BH, Q, S)
            s[:, :, -size:] += above[:size, :size]
            if window is not None:
                _hide_beyond(s, rows, seen, window)
            p = torch.softmax(s, -1)
            kept.append(p)
            if dropout_p:
                drop = torch.empty_like(p).bernoulli_(1 - dropout_p).div_(1 - dropout_p)
                kept.append(drop)
                p = p * drop
            y.append(torch.bmm(p, v[:, seen]))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.dropout_p, ctx.window = dropout_p, window
        return _joined(y).view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        BH, T, D = q.shape
        shape = dy.shape  # (B, H, T, D)
        dy = dy.reshape(BH, T, D).to(q.dtype)
        dq: list[Tensor] = []  # of each block (BH, Q, D)
        dk = dv = None
        for rows, seen in _blocks(T, ctx.window):
            p = dropped = kept.pop(0)  # (BH, Q, S)
            dp = torch.bmm(dy[:, rows], v[:, seen].transpose(1, 2))  # (BH, Q, S)
            if ctx.dropout_p:
                drop = kept.pop(0)
                dropped = p * drop
                dp *= drop
            dv = _added(dv, torch.bmm(dropped.transpose(1, 2), dy[:, rows]), seen, T)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p ⊙ (dp − Σ p ⊙ dp)
            dq.append(torch.bmm(ds, k[:, seen]))
            dk = _added(dk, torch.bmm(ds.transpose(1, 2), q[:, rows]), seen, T)
        assert dk is not None
        assert dv is not None
        dq_whole = _joined(dq).div_(math.sqrt(D))
        return dq_whole.view(shape), dk.view(shape), dv.view(shape), None, None


def _joined(blocks: list[Tensor]) -> Tensor:
    """Each (BH, Q, D) → (BH, T, D); the only one as it is."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _added(total: Tensor | None, part: Tensor, seen: slice, T: int) -> Tensor:
    """`total` of earlier blocks, (BH, T, D), with `part` of keys seen; the only one as it is."""
    if total is None:
        if part.size(1) == T:
            return part
        total = part.new_zeros(part.size(0), T, part.size(2))
    total[:, seen] += part
    return total


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    n_vocab: int | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross-entropy in nats of the logits x weightᵀ, squashed to ± softcap where there is one.

    (N, C), (V, C), (N,) int64 → a scalar, float32 at least. Products are in the autocast type,
    where there is one. Logits from n_vocab on do not count, nor do targets equal to ignore_index.
    """
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    ids = n_vocab or len(weight)
    return _LinearCrossEntropy.apply(x, weight, targets, ids, softcap, ignore_index, low)


class _LinearCrossEntropy(torch.autograd.Function):
    """The logits of all rows are never there in float32, nor twice.

    Their gradient takes their place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        n_vocab: int,
        softcap: float | None,
        ignore_index: int,
        low: torch.dtype,
    ) -> Tensor:
        dx_wanted, dw_wanted = ctx.needs_input_grad[:2]
        wide = torch.promote_types(low, torch.float32)
        a, w = x.to(low), weight.to(low)
        counts = targets != ignore_index  # (N,)
        total = torch.zeros((), dtype=torch.float64)
        dx = torch.empty_like(a) if dx_wanted else None
        dw: Tensor | None = None
        for rows in torch.arange(len(a)).split(max(1, LOGITS // len(w))):
            some = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = a[some] @ w.t()  # (n, V)
            # and now they are their gradient
            total += _losses(logits[:, :n_vocab], targets[some], counts[some], wide, softcap)
            logits[:, n_vocab:] = 0
            if dx is not None:
                torch.mm(logits, w, out=dx[some])
            if dw_wanted:
                part = logits.t() @ a[some]  # (V, C)
                dw = part if dw is None else dw.to(wide).add_(part)
        n = counts.sum()
        ctx.save_for_backward(dx, dw, n)
        ctx.types = x.dtype, weight.dtype
        return (total / n).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, n = ctx.saved_tensors
        scale = dloss / n
        return (
            None if dx is None else dx.to(ctx.types[0]) * scale,
            None if dw is None else dw.to(ctx.types[1]) * scale,
            None,
            None,
            None,
            None,
            None,
        )


def _losses(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor,
    wide: torch.dtype,
    softcap: float | None,
) -> Tensor:
    """Sum of the losses of some rows of logits, (n, V).

    Their gradient, softmax − one_hot(targets), takes the logits' place; squashed, times 1 − tanh².
    """
    total = torch.zeros((), dtype=torch.float64)
    at_a_time = max(8 * torch.get_num_threads(), IN_CACHE // logits.size(1))
    for z, target, count in zip(
        logits.split(at_a_time), targets.split(at_a_time), counts.split(at_a_time), strict=True
    ):
        wanted = torch.where(count, target, 0)[:, None]  # (m, 1)
        e = z.to(wide)  # (m, V)
        if softcap is not None:
            tanh = torch.tanh(e / softcap)
            e = tanh * softcap
        e -= e.amax(1, keepdim=True)
        picked = e.gather(1, wanted)
        sums = e.exp_().sum(1, keepdim=True)
        total += torch.where(count[:, None], sums.log() - picked, 0).sum()
        e *= count[:, None] / sums
        e.scatter_add_(1, wanted, -count[:, None].to(wide))
        if softcap is not None:
            e *= 1 - tanh * tanh
        z.copy_(e)
    return total
