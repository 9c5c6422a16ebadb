"""Training passes made for CPUs: attention and the head as autograd Functions of a few large matrix
products.

Each is the plain computation of model.py, up to rounding: its forward and its derivative stand side
by side here, and the tests compare them with it. use() puts them into a model where they are
faster; on a GPU nothing of this is used.

Shape letters: B sequences, T tokens, C = n_embd, H = n_head, D = C / H, V = vocab_size, N = B·T.

Sources: Vaswani et al. 2017, "Attention Is All You Need", §3.2; Wijmans et al. 2024, "Cut Your
Losses in Large-Vocabulary Language Models" (the gradient of the logits is made where the loss is).
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.devices import total_memory_bytes
from nanogpt_dist.model.gpt import GPT, Block, CausalSelfAttention

ENOUGH = 4096  # tokens in one pass: more of them make it no faster
MEMORY_SHARE = 0.25  # of the machine's memory, for what a pass keeps until its backward pass
# in one block of attention: of what is above the diagonal, only a block's own part is computed in
# vain
QUERIES = 128
# tokens up to which written-out attention is used; its probabilities are kept, T²/2 for each head
LONGEST = 1024
LOGITS = 2**28  # at most in memory at a time
IN_CACHE = 2**20  # logits that are worked on at a time, in float32


def chosen(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether training in `dtype` on `device` uses what stands here. In float32 it does not: there
    it is exact.
    """
    return (
        config.cpu_fast and not config.compile and device.type == "cpu" and dtype == torch.bfloat16
    )


def use(model: GPT) -> None:
    """Let `model` make its training passes in this file's way. Its weights, and their names, stay
    as they are.

    The attention that is here is GPT-2's: a model with another one keeps it.
    """
    model.forward = functools.partial(_forward, model, model.forward)  # type: ignore[assignment, method-assign]
    if not has_gpt2_attention(model.config):
        return
    for block in model.transformer.h:
        assert isinstance(block, Block)
        block.attn.forward = functools.partial(_attend, block.attn, block.attn.forward)  # type: ignore[method-assign]


def has_gpt2_attention(config: ModelConfig) -> bool:
    """Whether causal_attention() is all that happens between a block's two matrix products."""
    return not (
        config.rotary or config.qk_norm or config.intra_document or config.kv_heads != config.n_head
    )


def joined_batch_size(config: TrainConfig, ranks_here: int) -> int:
    """Sequences in one forward pass at most: as many micro-batches as are worth it, and fit, are
    made at once.

    The gradient of an update is the same sum. Larger products are faster, and weights are cast less
    often.
    """
    C, T = config.n_embd, config.block_size
    # Kept of a token until the backward pass: about 42 C bytes in each block, and the probabilities
    # of its heads.
    bytes_per_token = config.n_layer * (42 * C + config.n_head * min(T, LONGEST)) + 8 * C
    room = MEMORY_SHARE * total_memory_bytes(torch.device("cpu")) / ranks_here / bytes_per_token
    return max(config.batch_size, int(min(room, ENOUGH) // T))


def _forward(
    model: GPT,
    plain: Any,
    idx: Tensor,
    targets: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """GPT.forward, but that with targets there are no logits, only the loss."""
    if targets is None:
        return plain(idx)
    assert idx.size(1) <= model.config.block_size, "longer than block_size"
    x = model.transformer(idx)  # (B, T, C)
    return None, linear_cross_entropy(
        x.flatten(0, 1), model.lm_head.weight, targets.flatten(), model.n_vocab
    )


def _attend(attn: CausalSelfAttention, plain: Any, x: Tensor, _: None = None) -> Tensor:
    """CausalSelfAttention.forward, (B, T, C) → (B, T, C)."""
    if x.size(1) > LONGEST:
        return plain(x)
    qkv = attn.c_attn(x)  # (B, T, 3C)
    if qkv.dtype != torch.bfloat16:  # as in an evaluation in float32
        return plain(x)
    y = causal_attention(qkv, attn.config.n_head, attn.dropout if attn.training else 0.0)
    return attn.resid_dropout(attn.c_proj(y))


def causal_attention(qkv: Tensor, n_head: int, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √D + causal mask) v of queries, keys and values side by side: (B, T, 3C)
    → (B, T, C).
    """
    return _Attention.apply(qkv, n_head, dropout)


def _blocks(T: int) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that at least one of them sees."""
    for first in range(0, T, QUERIES):
        last = min(first + QUERIES, T)
        yield slice(first, last), slice(0, last)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int, dropout: float) -> Tensor:
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        D = C // n_head
        # 3 × (BH, T, D)
        q, k, v = qkv.view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4).reshape(3, B * n_head, T, D)
        q = q / math.sqrt(D)
        above = torch.full((QUERIES, QUERIES), float("-inf"), dtype=q.dtype).triu(1)
        y = torch.empty(B, n_head, T, D, dtype=q.dtype)
        kept = []  # of each block: probabilities, and what dropout multiplies them with
        for rows, seen in _blocks(T):
            size = rows.stop - rows.start
            s = torch.bmm(q[:, rows], k[:, seen].transpose(1, 2))  # (BH, Q, S)
            s[:, :, rows] += above[:size, :size]
            p = torch.softmax(s, -1)
            kept.append(p)
            if dropout:
                drop = torch.empty_like(p).bernoulli_(1 - dropout).div_(1 - dropout)
                kept.append(drop)
                p = p * drop
            y[:, :, rows] = torch.bmm(p, v[:, seen]).view(B, n_head, size, D)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.n_head, ctx.dropout = n_head, dropout
        return y.transpose(1, 2).reshape(B, T, C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        BH, T, D = q.shape
        dy = dy.view(-1, T, ctx.n_head, D).transpose(1, 2).reshape(BH, T, D).to(q.dtype)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, seen in _blocks(T):
            p = dropped = kept.pop(0)  # (BH, Q, S)
            dp = torch.bmm(dy[:, rows], v[:, seen].transpose(1, 2))
            if ctx.dropout:
                drop = kept.pop(0)
                dropped = p * drop
                dp *= drop
            dv[:, seen] += torch.bmm(dropped.transpose(1, 2), dy[:, rows])
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p ⊙ (dp − Σ p ⊙ dp)
            dq[:, rows] = torch.bmm(ds, k[:, seen])
            dk[:, seen] += torch.bmm(ds.transpose(1, 2), q[:, rows])
        dq /= math.sqrt(D)
        heads = torch.stack([dq, dk, dv]).view(3, -1, ctx.n_head, T, D)
        return heads.permute(1, 3, 0, 2, 4).reshape(-1, T, 3 * ctx.n_head * D), None, None


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    n_vocab: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross-entropy in nats of the logits x weightᵀ: (N, C), (V, C), (N,) int64 → a scalar,
    float32 at least.

    Products are in the autocast type, where there is one. Logits from n_vocab on do not count, nor
    do targets equal to ignore_index.
    """
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return _LinearCrossEntropy.apply(x, weight, targets, n_vocab or len(weight), ignore_index, low)


class _LinearCrossEntropy(torch.autograd.Function):
    """The logits of all rows are never there in float32, nor twice: their gradient takes their
    place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        n_vocab: int,
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
            total += _losses(logits[:, :n_vocab], targets[some], counts[some], wide)
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
        )


def _losses(logits: Tensor, targets: Tensor, counts: Tensor, wide: torch.dtype) -> Tensor:
    """Sum of the losses of some rows (n, V); their gradient, softmax − one_hot(targets), takes the
    logits' place.
    """
    total = torch.zeros((), dtype=torch.float64)
    at_a_time = max(8 * torch.get_num_threads(), IN_CACHE // logits.size(1))
    for z, target, count in zip(
        logits.split(at_a_time), targets.split(at_a_time), counts.split(at_a_time), strict=True
    ):
        wanted = torch.where(count, target, 0)[:, None]  # (m, 1)
        e = z.to(wide)  # (m, V)
        e -= e.amax(1, keepdim=True)
        picked = e.gather(1, wanted)
        sums = e.exp_().sum(1, keepdim=True)
        total += torch.where(count[:, None], sums.log() - picked, 0).sum()
        e *= count[:, None] / sums
        e.scatter_add_(1, wanted, -count[:, None].to(wide))
        z.copy_(e)
    return total
