"""Where the tokens of a pass stand: in which document, at which position of it, at which rotary
angles.

With GPT-2's own architecture nothing of this is used: a token stands at its place in the sequence,
and sees what is before it.

Shape letters: B sequences, T tokens of a sequence, H = heads, D = width of a head.

Sources: Su et al. 2021, "RoFormer", §3.2 (rotary positions; halves are turned against each other,
as GPT-NeoX and Llama have it); Dong et al. 2024, "FlexAttention"; Grattafiori et al. 2024, "The
Llama 3 Herd of Models", §3.2 (no attention across documents).
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_dist.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class Places:
    """Of a pass over (B, T) tokens: position in the document (T,) or (B, T); cosines and sines of
    the rotary angles, (T, D/2) or (B, 1, T, D/2); and who sees whom, (B, 1, T, T) bool, or its
    blocks for FlexAttention; None: causal.
    """

    position: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    seen: "Tensor | BlockMask | None" = None


def places(idx: Tensor, config: ModelConfig, dropout: bool = False) -> Places:
    """The Places of token ids (B, T); dropout: attention has some, which FlexAttention has not."""
    position = torch.arange(idx.size(1), device=idx.device)  # (T,)
    seen: Tensor | BlockMask | None = None
    if config.intra_document:
        assert config.eot_id is not None, "fill in eot_id before running the model"
        # (B, T): an end of text is the first token of the document behind it
        begins = idx == config.eot_id
        document = begins.cumsum(1)  # (B, T)
        position = position - torch.where(begins, position, 0).cummax(1).values  # (B, T)
        seen = (
            torch.compiler.disable(_blocks)(document)
            if idx.is_cuda and not dropout
            else same_document(document)
        )
    return at(position, config, seen)


def at(position: Tensor, config: ModelConfig, seen: "Tensor | BlockMask | None" = None) -> Places:
    """The Places of given positions, (T,) or (B, T)."""
    if not config.rotary:
        return Places(position, seen=seen)
    D = config.head_size
    frequency = config.rotary_base ** (
        -torch.arange(0, D, 2, device=position.device, dtype=torch.float32) / D
    )
    angle = position[..., None] * frequency  # (T, D/2) or (B, T, D/2)
    if position.ndim == 2:
        angle = angle[:, None]  # (B, 1, T, D/2): the same for all heads
    return Places(position, angle.cos(), angle.sin(), seen)


def rotate(x: Tensor, where: Places) -> Tensor:
    """Turn queries or keys by the angles of their positions, in float32: (B, H, T, D)
    → (B, H, T, D).
    """
    assert where.cos is not None
    assert where.sin is not None
    a, b = x.float().chunk(2, dim=-1)  # 2 × (B, H, T, D/2)
    return torch.cat((a * where.cos - b * where.sin, b * where.cos + a * where.sin), dim=-1).to(
        x.dtype
    )


def same_document(document: Tensor) -> Tensor:
    """Who sees whom: what is in one's own document and not behind: (B, T) → (B, 1, T, T) bool."""
    T = document.size(1)
    causal = torch.ones(T, T, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: "Tensor | BlockMask | None",
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √D + mask) v: (B, H, T, D) and twice (B, K, T, D), K a divisor of H
    → (B, H, T, D).
    """
    grouped = q.size(1) != k.size(1)
    if seen is not None and not isinstance(seen, Tensor):
        return _flex()(q, k, v, block_mask=seen, enable_gqa=grouped)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, dropout_p=dropout, is_causal=seen is None, enable_gqa=grouped
    )


def _blocks(document: Tensor) -> "BlockMask":
    """same_document() for FlexAttention, which leaves out the blocks in which nobody sees
    anybody.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[b, query] == document[b, key]) & (query >= key)

    B, T = document.shape
    return create_block_mask(sees, B, None, T, T, device=document.device)


def _flex() -> Any:
    """FlexAttention; where the model is not compiled, it at least has to be, or it writes all of q
    kᵀ out.
    """
    from torch.nn.attention.flex_attention import flex_attention

    whole_model = torch.compiler.is_compiling()
    return (
        flex_attention
        if whole_model or not torch.cuda.is_available()
        else _compiled(flex_attention)
    )


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)
