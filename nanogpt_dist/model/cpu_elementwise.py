"""Rotary positions and squared ReLU for CPUs in bfloat16, as autograd Functions of few operations.

On small models a step is mostly element-wise work on tensors that fit into the cache: each
operation less is time. Each is torch's plain computation, up to rounding in bfloat16.

Shape letters: B sequences, T tokens, H = heads, D = width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanogpt_dist.model import positions
from nanogpt_dist.model.positions import SequencePositions


def rotate(x: Tensor, at: SequencePositions) -> Tensor:
    """Turn queries or keys by their rotary angles: (B, H, T, D) → (B, H, T, D)."""
    if x.dtype != torch.bfloat16:
        return positions.rotate(x, at)
    assert at.cos is not None
    assert at.sin is not None
    cos = torch.cat((at.cos, at.cos), -1).to(x.dtype)
    return _Rotate.apply(x, cos, torch.cat((-at.sin, at.sin), -1).to(x.dtype))


class _Rotate(torch.autograd.Function):
    """x ⊙ cos + (second half, first half) ⊙ (−sin, sin); backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(dy, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)  # 2 × (B, H, T, D/2)
    return torch.cat((b, a), dim=-1).mul_(sin).addcmul_(x, cos)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², of any shape."""
    return _SquaredReLU.apply(x)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return (dy * r).mul_(2)
