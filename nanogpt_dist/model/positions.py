"""Position ids, rotary angles and masks: what attention reads beside queries, keys and values.

GPT-2's own architecture needs none of it: a token's position is its place in the sequence, and it
attends to itself and to what is before it.

Shape letters: B sequences, T tokens of a sequence, H = heads, D = width of a head.

Sources: Su et al. 2021, "RoFormer", §3.2 (rotary positions; halves are turned against each other,
as GPT-NeoX and Llama have it); Dong et al. 2024, "FlexAttention"; Grattafiori et al. 2024, "The
Llama 3 Herd of Models", §3.2 (no attention across documents).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from nanogpt_dist.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Who attends to whom: (B, 1, T, T) bool, its blocks for FlexAttention, or None: causal.
Mask = Union[Tensor, "BlockMask", None]

FLEX_AT_LEAST = 16  # width of a head, of FlexAttention's kernels


@dataclass(frozen=True)
class SequencePositions:
    """Where the tokens of one pass stand, and what each attends to.

    position_ids: (T,) or (B, T), of a token in its document. cos, sin: of the rotary angles,
    (T, D/2) or (B, 1, T, D/2); None: not rotary.
    """

    position_ids: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    mask: Mask = None


def sequence_positions(
    idx: Tensor,
    config: ModelConfig,
    dropout: bool = False,
) -> SequencePositions:
    """The SequencePositions of token ids (B, T).

    dropout: whether attention drops probabilities, which FlexAttention cannot.
    """
    position_ids = torch.arange(idx.size(1), device=idx.device)  # (T,)
    mask: Mask = None
    if config.intra_document:
        assert config.eot_id is not None, "fill in eot_id before running the model"
        # (B, T): an end of text is the first token of the document behind it
        begins = idx == config.eot_id
        document_ids = begins.cumsum(1)  # (B, T)
        position_ids = position_ids - torch.where(begins, position_ids, 0).cummax(1).values
        flex = idx.is_cuda and not dropout and config.head_size >= FLEX_AT_LEAST
        mask = _block_mask(document_ids) if flex else document_mask(document_ids)
    return with_rotary_angles(position_ids, config, mask)


def with_rotary_angles(
    position_ids: Tensor,
    config: ModelConfig,
    mask: Mask = None,
) -> SequencePositions:
    """The SequencePositions of given position ids, (T,) or (B, T)."""
    if not config.rotary:
        return SequencePositions(position_ids, mask=mask)
    D = config.head_size
    frequency = config.rotary_base ** (
        -torch.arange(0, D, 2, device=position_ids.device, dtype=torch.float32) / D
    )
    angle = position_ids[..., None] * frequency  # (T, D/2) or (B, T, D/2)
    if position_ids.ndim == 2:
        angle = angle[:, None]  # (B, 1, T, D/2): the same for all heads
    return SequencePositions(position_ids, angle.cos(), angle.sin(), mask)


def rotate(x: Tensor, positions: SequencePositions) -> Tensor:
    """Turn queries or keys by their rotary angles, in float32: (B, H, T, D) → (B, H, T, D)."""
    assert positions.cos is not None
    assert positions.sin is not None
    cos, sin = positions.cos, positions.sin
    a, b = x.float().chunk(2, dim=-1)  # 2 × (B, H, T, D/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def document_mask(document_ids: Tensor) -> Tensor:
    """Causal attention within one's own document: (B, T) → (B, 1, T, T) bool."""
    T = document_ids.size(1)
    causal = torch.ones(T, T, dtype=torch.bool, device=document_ids.device).tril()
    return ((document_ids[:, :, None] == document_ids[:, None, :]) & causal)[:, None]


def _block_mask(document_ids: Tensor) -> "BlockMask":
    """document_block_mask(), compiled: as it stands, it would write (B, T, T) out some times."""
    if torch.compiler.is_compiling():
        return document_block_mask(document_ids)
    return _compiled_block_mask()(document_ids)


@functools.cache
def _compiled_block_mask() -> "Callable[[Tensor], BlockMask]":
    return torch.compile(document_block_mask)


def document_block_mask(document_ids: Tensor) -> "BlockMask":
    """document_mask() for FlexAttention, which skips blocks that are masked altogether."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[b, query] == document_ids[b, key]) & (query >= key)

    B, T = document_ids.shape
    return create_block_mask(allowed, B, None, T, T, device=document_ids.device)
