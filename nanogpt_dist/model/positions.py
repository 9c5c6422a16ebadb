"""Position ids, rotary angles and masks: what attention reads beside queries, keys and values.

GPT-2's own architecture needs none of it: a token's position is its place in the sequence, and it
attends to itself and to what is before it.

Shape letters: B sequences, T tokens of a sequence, H = heads, D = width of a head. A window of W
tokens is a token and the W − 1 before it.

Sources: Su et al. 2021, "RoFormer", §3.2 (rotary positions; halves are turned against each other,
as GPT-NeoX and Llama have it); Dong et al. 2024, "FlexAttention"; Grattafiori et al. 2024, "The
Llama 3 Herd of Models", §3.2 (no attention across documents); Beltagy et al. 2020, "Longformer",
§3.1 (windows).
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
    (T, D/2) or (B, 1, T, D/2); None: not rotary. window_mask: of short layers, in place of `mask`;
    None: causal, within the window.
    """

    position_ids: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    mask: Mask = None
    window_mask: Mask = None


def sequence_positions(
    idx: Tensor,
    config: ModelConfig,
    dropout: bool = False,
) -> SequencePositions:
    """The SequencePositions of token ids (B, T).

    dropout: whether attention drops probabilities, which FlexAttention cannot.
    """
    T, window = idx.size(1), config.shortest_window
    position_ids = torch.arange(T, device=idx.device)  # (T,)
    mask: Mask = None
    window_mask: Mask = None
    flex = idx.is_cuda and not dropout and config.head_size >= FLEX_AT_LEAST
    if config.intra_document:
        assert config.eot_id is not None, "fill in eot_id before running the model"
        # (B, T): an end of text is the first token of the document behind it
        begins = idx == config.eot_id
        document_ids = begins.cumsum(1)  # (B, T)
        position_ids = position_ids - torch.where(begins, position_ids, 0).cummax(1).values
        mask = _block_mask(document_ids) if flex else document_mask(document_ids)
        window_mask = mask
        if window is not None and window < T:
            made = _block_mask if flex else document_mask
            window_mask = made(document_ids, window)
    elif flex and window is not None and window < T:
        window_mask = _window_block_mask(T, window, idx.device)
    return with_rotary_angles(position_ids, config, mask, window_mask)


def with_rotary_angles(
    position_ids: Tensor,
    config: ModelConfig,
    mask: Mask = None,
    window_mask: Mask = None,
) -> SequencePositions:
    """The SequencePositions of given position ids, (T,) or (B, T)."""
    if not config.rotary:
        return SequencePositions(position_ids, mask=mask, window_mask=window_mask)
    D = config.head_size
    frequency = config.rotary_base ** (
        -torch.arange(0, D, 2, device=position_ids.device, dtype=torch.float32) / D
    )
    angle = position_ids[..., None] * frequency  # (T, D/2) or (B, T, D/2)
    if position_ids.ndim == 2:
        angle = angle[:, None]  # (B, 1, T, D/2): the same for all heads
    return SequencePositions(position_ids, angle.cos(), angle.sin(), mask, window_mask)


def rotate(x: Tensor, positions: SequencePositions) -> Tensor:
    """Turn queries or keys by their rotary angles, in float32: (B, H, T, D) → (B, H, T, D)."""
    assert positions.cos is not None
    assert positions.sin is not None
    cos, sin = positions.cos, positions.sin
    a, b = x.float().chunk(2, dim=-1)  # 2 × (B, H, T, D/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def document_mask(document_ids: Tensor, window: int | None = None) -> Tensor:
    """Causal attention within one's own document: (B, T) → (B, 1, T, T) bool.

    window: how many tokens a query attends to at most.
    """
    causal = causal_mask(document_ids.size(1), window, document_ids)
    return ((document_ids[:, :, None] == document_ids[:, None, :]) & causal)[:, None]


def causal_mask(T: int, window: int | None, like: Tensor) -> Tensor:
    """Which keys a query attends to, the last `window` or all: (T, T) bool, on like's device."""
    causal = torch.ones(T, T, dtype=torch.bool, device=like.device).tril()
    return causal if window is None else causal.triu(1 - window)


def _block_mask(document_ids: Tensor, window: int | None = None) -> "BlockMask":
    """document_block_mask(), compiled: as it stands, it would write (B, T, T) out some times."""
    if torch.compiler.is_compiling():
        return document_block_mask(document_ids, window)
    return _compiled_block_mask()(document_ids, window)


@functools.cache
def _compiled_block_mask() -> "Callable[..., BlockMask]":
    return torch.compile(document_block_mask)


def document_block_mask(document_ids: Tensor, window: int | None = None) -> "BlockMask":
    """document_mask() for FlexAttention, which skips blocks that are masked altogether.

    window: how many tokens a query attends to at most.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (document_ids[b, query] == document_ids[b, key]) & (query >= key)
        return own if window is None else own & (query - key < window)

    B, T = document_ids.shape
    return create_block_mask(allowed, B, None, T, T, device=document_ids.device)


def _window_block_mask(T: int, window: int, device: torch.device) -> "BlockMask":
    """window_block_mask(), made once for all passes; within a compiled model, in each."""
    if torch.compiler.is_compiling():
        return window_block_mask(T, window, device)
    return _kept_block_mask(T, window, device)


@functools.lru_cache(maxsize=8)
def _kept_block_mask(T: int, window: int, device: torch.device) -> "BlockMask":
    with torch.inference_mode(False):  # a backward pass may keep it, whoever asks first
        return window_block_mask(T, window, device)


def window_block_mask(T: int, window: int, device: torch.device) -> "BlockMask":
    """causal_mask() for FlexAttention, which skips blocks outside the window."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    return create_block_mask(allowed, None, None, T, T, device=device)
