"""Embeddings beside that of the token, and what reads the token before: no GPT-2 has them.

Each begins so that the model is what it would be without it, but for the value embeddings. The
first token of a sequence, and with intra_document that of a document, has none before it.

Shape letters: B sequences, T tokens of a sequence, C = n_embd, K = heads of keys and values,
D = width of a head, V = vocab_size, R = bigram_rows, W = channels that a gate reads.

Sources: the NanoGPT speedrun (smear, hashed bigrams, value embeddings), and nanochat, which has the
gate's width, and value embeddings in every other block, the last one included; Zhou et al. 2024,
"Value Residual Learning".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_dist.config import ModelConfig

MASK = 2**32 - 1  # of 32 bits
FACTORS = (2_654_435_761, 2_246_822_519)  # odd, of 32 bits: those of Knuth and of xxHash
FIRST = 0  # the id that stands for the one before the first token


class Table(nn.Embedding):
    """An embedding without values, which init_weight() gives.

    To draw them on the meta device, torch would load its compiler first.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, _weight=torch.empty(rows, width))


class BigramEmbedding(Table):
    """A row for each pair of the last two tokens: 2 × (B, T) → (B, T, C); zeros at first.

    With V² rows each pair has its own; with fewer, pairs of equal hash share one.
    """

    def __init__(self, config: ModelConfig) -> None:
        assert config.bigram_rows is not None
        assert config.vocab_size is not None
        super().__init__(config.bigram_rows, config.n_embd)
        self.V = config.vocab_size

    def forward(self, idx: Tensor, before: Tensor) -> Tensor:  # type: ignore[override]
        return F.embedding(bigram_row(before, idx, self.V, self.num_embeddings), self.weight)


def bigram_row(before: Tensor, idx: Tensor, V: int, rows: int) -> Tensor:
    """The row of each pair of ids, below `rows`: 2 × (B, T) → (B, T) int64."""
    if rows >= V * V:
        return before * V + idx
    # of 57 bits at most, of which 32 are kept; then the upper ones are shared out evenly
    mixed = (before * FACTORS[0] + idx * FACTORS[1]) & MASK
    mixed = ((mixed ^ (mixed >> 15)) * FACTORS[1]) & MASK
    return (mixed * rows) >> 32


class Smear(nn.Module):
    """x + λ·sigmoid(w · first W channels of x) · (the embedding before): 2 × (B, T, C) → (B, T, C).

    w and λ are learnt and begin as 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(config.gate_width))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        read = (x[..., : len(self.gate)] * self.gate).sum(-1, keepdim=True)  # (B, T, 1)
        return torch.addcmul(x, torch.sigmoid(read) * self.scale, before)


class ValueEmbedding(Table):
    """A row for each token, times a learnt scale that begins as 1: (B, T) → (B, T, K·D)."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.vocab_size is not None
        super().__init__(config.vocab_size, config.kv_heads * config.head_size)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx) * self.scale


def ids_before(idx: Tensor, position_ids: Tensor) -> Tensor:
    """The id before each, FIRST where there is none: (B, T), (T,) | (B, T) → (B, T)."""
    before = F.pad(idx[:, :-1], (1, 0), value=FIRST)
    if position_ids.ndim == 1:
        return before
    return before.masked_fill(position_ids == 0, FIRST)


def embeddings_before(x: Tensor, position_ids: Tensor) -> Tensor:
    """The embedding before each, zeros where there is none: (B, T, C) → (B, T, C)."""
    before = F.pad(x[:, :-1], (0, 0, 1, 0))
    if position_ids.ndim == 1:
        return before
    return before.masked_fill((position_ids == 0)[..., None], 0)
