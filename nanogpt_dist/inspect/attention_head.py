"""One head of attention at work on a few tokens: its queries, keys and values, the mask, and who
reads whom.

Shape letters: T tokens, C = n_embd, D = width of a head.

Source: Vaswani et al. 2017, "Attention Is All You Need", §3.2.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_dist.errors import UsageError
from nanogpt_dist.model.gpt import GPT, Block
from nanogpt_dist.model.positions import same_document


@dataclass(frozen=True)
class Head:
    """q, k, v (T, D); scores q kᵀ / √D before the mask (T, T); seen (T, T) bool; weights, their
    softmax (T, T); y = weights · v, what the head hands on (T, D).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    seen: Tensor
    weights: Tensor
    y: Tensor


@torch.no_grad()
def look(model: GPT, ids: Sequence[int], layer: int, head: int) -> Head:
    """The Head number `head` in block `layer`, both from 0, on `ids`. Raises UsageError where there
    is no such head.
    """
    config, table = model.config, model.transformer
    for what, number, n in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if not 0 <= number < n:
            raise UsageError(f"--{what} {number}: this model has {n}, 0 to {n - 1}")
    idx = torch.tensor([list(ids)])  # (1, T)
    x, where = table.begin(idx)  # (1, T, C)
    for block in table.h[:layer]:
        x = block(x, where)
    block = table.h[layer]
    assert isinstance(block, Block)
    q, k, v = block.attn.heads(block.attn.c_attn(block.ln_1(x)), where)
    group = head * config.kv_heads // config.n_head
    q, k, v = q[0, head], k[0, group], v[0, group]  # 3 × (T, D)
    scores = q @ k.t() / math.sqrt(config.head_size)  # (T, T)
    seen = where.seen if where is not None else None
    # (T, T)
    seen = (seen if isinstance(seen, Tensor) else same_document(torch.zeros_like(idx)))[0, 0]
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return Head(q, k, v, scores, seen, weights, weights @ v)
