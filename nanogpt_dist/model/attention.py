"""Attention, softmax(q kᵀ / √D + mask) v, and its implementations side by side.

All have one signature, that of `Attention`. A model takes the one that it is given (kernels.py);
a mask of FlexAttention's goes to flex_attention().

Shape letters: B sequences, T tokens of queries, S tokens of keys and values (T, but for a cache),
H = heads, K = heads of keys and values, a divisor of H, D = width of a head.

Sources: Vaswani et al. 2017, "Attention Is All You Need", §3.2; Ainslie et al. 2023, "GQA"; Dong
et al. 2024, "FlexAttention"; Pope et al. 2022, "Efficiently Scaling Transformer Inference", §3 (the
cache).
"""

import functools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_dist.model import cpu_kernels
from nanogpt_dist.model.positions import Mask, causal_mask


class Attention(Protocol):
    """q (B, H, T, D), k and v (B, K, S, D) → (B, H, T, D).

    mask: which keys a query attends to; None: causal. dropout_p: of the probabilities. window:
    without a mask, how many tokens a query attends to at most; a mask says so itself.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        dropout_p: float = 0.0,
        window: int | None = None,
    ) -> Tensor: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    dropout_p: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """What a model uses that is given no other: torch's SDPA, or FlexAttention for its masks."""
    if mask is None and window is not None and window < q.size(2):
        mask = causal_mask(q.size(2), window, q)  # (T, T)
    if mask is not None and not isinstance(mask, Tensor):
        return flex_attention(q, k, v, mask, dropout_p)
    return sdpa_attention(q, k, v, mask, dropout_p)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout_p: float = 0.0) -> Tensor:
    """torch's scaled_dot_product_attention; mask: (B, 1, T, T) bool, or None: causal."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,  # type: ignore[arg-type]
        dropout_p=dropout_p,
        is_causal=mask is None,
        enable_gqa=q.size(1) != k.size(1),
    )


def flex_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout_p: float = 0.0) -> Tensor:
    """torch's FlexAttention, which has no dropout; mask: a BlockMask."""
    assert dropout_p == 0, "FlexAttention has no dropout"
    return _flex()(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))


def cpu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    dropout_p: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """The CPU kernel for causal attention in bfloat16; what it is not made for is torch's SDPA."""
    fits = mask is None and q.dtype == torch.bfloat16 and q.size(1) == k.size(1)
    if not fits or q.size(2) > cpu_kernels.LONGEST:
        return attention(q, k, v, mask, dropout_p, window)
    return cpu_kernels.causal_attention(q, k, v, dropout_p, window)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout_p: float = 0.0) -> Tensor:
    """One query for each row (T = 1) over a cache of S keys and values, of which it is the last.

    mask: (B, 1, 1, S) bool, where rows are of unequal length; None: the query attends to all.
    """
    assert q.size(2) == 1
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,  # type: ignore[arg-type]
        dropout_p=dropout_p,
        enable_gqa=q.size(1) != k.size(1),
    )


def _flex() -> Any:
    """torch's function, compiled: as it stands, it would write all of q kᵀ out."""
    from torch.nn.attention.flex_attention import flex_attention

    whole_model = torch.compiler.is_compiling()
    if whole_model or not torch.cuda.is_available():
        return flex_attention
    return _compiled(flex_attention)


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)
