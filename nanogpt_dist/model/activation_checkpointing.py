"""Activation checkpointing: a block keeps its input, and computes the rest again when it needs it.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

# Selective checkpointing keeps what these give, and FlexAttention: most of the arithmetic, and a
# good half of the memory, is theirs.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def checkpointed(forward: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    """A block's `forward`, (B, T, C) → (B, T, C), that keeps its input alone.

    mode: full, or selective, which keeps what KEPT's operators give, too.
    """
    options: dict[str, Any] = {}
    if mode == "selective":
        # compiled, torch warns of operators in place, of which a block has none
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        # loaded by who needs it
        from torch._higher_order_ops.flex_attention import flex_attention

        kept = [*KEPT, flex_attention]
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept)

    def run(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run
