"""One attention head at work on a few tokens: queries, keys, values, mask, and its weights.

Shape letters: T tokens, C = n_embd, H = heads, K = heads of keys and values, D = width of a head.

Source: Vaswani et al. 2017, "Attention Is All You Need", §3.2.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_dist.errors import UsageError
from nanogpt_dist.model.gpt import GPT, Block
from nanogpt_dist.model.positions import causal_mask


@dataclass(frozen=True)
class AttentionHead:
    """What one head computes.

    q, k, v: (T, D). scores: q kᵀ / √D before the mask, (T, T). mask: True where a token attends to
    another, (T, T). weights: softmax of the masked scores, (T, T). y: weights · v, (T, D).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    mask: Tensor
    weights: Tensor
    y: Tensor


@torch.no_grad()
def inspect_head(model: GPT, ids: Sequence[int], layer: int, head: int) -> AttentionHead:
    """Head number `head` of block `layer`, both from 0, on `ids`.

    Raises UsageError where there is no such head.
    """
    config, transformer = model.config, model.transformer
    for what, number, n in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if not 0 <= number < n:
            raise UsageError(f"--{what} {number}: this model has {n}, 0 to {n - 1}")
    idx = torch.tensor([list(ids)], device=model.lm_head.weight.device)  # (1, T)
    x, positions = transformer.begin(idx)  # (1, T, C)
    x0 = x if config.residual_scalars else None
    for block in transformer.h[:layer]:
        x = block(x, positions, x0, idx)
    block = transformer.h[layer]
    assert isinstance(block, Block)
    qkv = block.attn.c_attn(block.ln_1(block.mixed(x, x0)))  # (1, T, (H + 2K)·D)
    q, k, v = block.attn.heads(qkv, positions, idx)  # (1, H, T, D), 2 × (1, K, T, D)
    group = head * config.kv_heads // config.n_head
    q, k, v = q[0, head], k[0, group], v[0, group]  # 3 × (T, D)
    scores = q @ k.t() / math.sqrt(config.head_size)  # (T, T)
    mask = causal_mask(len(ids), block.attn.window, idx)  # (T, T)
    if positions is not None and isinstance(positions.mask, Tensor):
        mask = mask & positions.mask[0, 0]
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return AttentionHead(q, k, v, scores, mask, weights, weights @ v)
