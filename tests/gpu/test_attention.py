"""FlexAttention within documents beside torch's SDPA under the same mask: values and gradients.

Shape letters: B sequences, T tokens, H heads, K heads of keys and values, D their width.
"""

import pytest
import torch
from torch import Tensor

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.attention import attention, sdpa_attention
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.model.kernels import Kernels
from nanogpt_dist.model.positions import document_block_mask, document_mask
from tests.gpu.conftest import Measured
from tests.gpu.machine import SIMULATED

B, H, T = 2, 4, 64 if SIMULATED else 512
CASES = {  # T, H, K, D
    "gpt2": (T, H, H, 64),
    "grouped queries": (T, H, 2, 64),
    "one head of keys": (T, H, 1, 32),
    "a short last window": (T - 37, H, H, 64),
    "heads of 16": (T, H, H, 16),
    "a short window of grouped heads of 16": (T - 37, H, 2, 16),
}
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # of a difference to the float64 values


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def documents(length: int) -> Tensor:
    """Document ids (B, length): ends of text at unequal places, one of them the first token."""
    ends = torch.zeros(B, length, dtype=torch.int64)
    ends[0, [0, 5, length // 2]] = 1
    ends[1, length - 3] = 1
    return ends.cumsum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_flex_is_masked_sdpa(name: str, dtype: torch.dtype, measured: Measured) -> None:
    length, heads, kv_heads, width = CASES[name]
    torch.set_float32_matmul_precision("highest")
    parts = [
        random(B, heads, length, width, seed=0),
        random(B, kv_heads, length, width, seed=1),
        random(B, kv_heads, length, width, seed=2),
    ]
    upstream = random(B, heads, length, width, seed=3)
    ids = documents(length)

    def values(device: str, kind: torch.dtype) -> list[Tensor]:
        """Attention's result and the gradients of q, k, v."""
        q, k, v = (part.to(device, kind).requires_grad_() for part in parts)
        if device == "cuda":
            y = attention(q, k, v, document_block_mask(ids.to(device)))
        else:
            y = sdpa_attention(q, k, v, document_mask(ids))
        y.backward(upstream.to(device, kind))
        return [y.detach(), *(t.grad for t in (q, k, v))]

    names = ("result", "grad_q", "grad_k", "grad_v")
    pairs = zip(names, values("cuda", dtype), values("cpu", torch.float64), strict=True)
    found = {}
    for part, ours, exact in pairs:
        assert ours.shape == exact.shape
        difference = (ours.cpu().double() - exact).norm() / exact.norm()
        found[part] = difference.item()
    measured.at_most(LIMITS[dtype], **found)


@pytest.mark.parametrize("width", [32, 8], ids=["heads of 32", "heads of 8"])
@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
def test_a_model_within_documents_has_the_masked_loss(
    compile_it: bool,
    width: int,
    measured: Measured,
) -> None:
    """A whole model, whose masks are made from its ids; beside the CPU, whose mask is a tensor.

    FlexAttention's kernels have no heads below 16: these go by a mask.
    """
    torch.set_float32_matmul_precision("highest")
    config = ModelConfig(
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=4 * width,
        block_size=T,
        vocab_size=320,
        rotary=True,
        intra_document=True,
        eot_id=7,
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(64, (B, T + 1), generator=generator)

    def loss_and_gradients(device: str) -> tuple[float, dict[str, Tensor]]:
        model = GPT(config, kernels=Kernels()).init_weights(0).to(device).tie()
        forward = torch.compile(model) if compile_it and device == "cuda" else model
        rows = ids.to(device)
        _, loss = forward(rows[:, :-1], rows[:, 1:])
        loss.backward()
        return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters()}

    loss, gradients = loss_and_gradients("cuda")
    wanted, exact = loss_and_gradients("cpu")
    measured.at_most(1e-4, loss=abs(loss - wanted))
    worst = max(
        ((gradients[name] - each).norm() / each.norm()).item() for name, each in exact.items()
    )
    measured.at_most(1e-3, gradient=worst)
