"""Rotary positions and squared ReLU written for CPUs: torch's own, up to bfloat16's rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model import cpu_elementwise, kernels, positions
from nanogpt_dist.model.positions import with_rotary_angles

CONFIG = ModelConfig(n_embd=64, n_head=2, block_size=48, rotary=True)
ALL = torch.arange(48)
ROWS = torch.stack([ALL, ALL.roll(7)])  # as with documents in a window


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What a function gives, and what its backward pass gives for a fixed gradient."""
    given = x.clone().requires_grad_()
    y = function(given)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    assert given.grad is not None
    return y.detach().float(), given.grad.float()


@pytest.mark.parametrize("ids", [ALL, ROWS], ids=["one row of ids", "a row for each sequence"])
def test_rotation_is_that_of_float32_rounded(ids: Tensor) -> None:
    x = torch.randn(2, 2, 48, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = x.transpose(1, 2).contiguous().transpose(1, 2)  # heads lie side by side, as in a model
    at = with_rotary_angles(ids, CONFIG)
    ours = gradient(lambda t: cpu_elementwise.rotate(t, at), x)
    exact = gradient(lambda t: positions.rotate(t, at), x.float())
    for mine, plain in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0.04)
        assert float((mine - plain).norm() / plain.norm()) < 0.005


def test_in_float32_it_is_torchs_to_the_bit() -> None:
    x, at = torch.randn(2, 2, 48, 32), with_rotary_angles(ALL, CONFIG)
    assert torch.equal(cpu_elementwise.rotate(x, at), positions.rotate(x, at))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_squared_relu_is_torchs_to_the_bit(dtype: torch.dtype) -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    for mine, plain in zip(
        gradient(cpu_elementwise.squared_relu, x), gradient(kernels.squared_relu, x), strict=True
    ):
        assert torch.equal(mine, plain)
