"""GPT-2 in reading order: attention → MLP → block → GPT. Names of modules and weights are nanoGPT's.

Shape letters: B sequences in the batch, T tokens of a sequence (≤ block_size), C = n_embd, H = n_head, D = C / H,
V = vocab_size.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3 (pre-norm, residual scaling);
Vaswani et al. 2017, "Attention Is All You Need", §3.2; Hendrycks & Gimpel 2016, "Gaussian Error Linear Units";
Press & Wolf 2017, "Using the Output Embedding to Improve Language Models" (the tied head).
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_dist.config import ModelConfig


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before: (B, T, C) → (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys and values at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # 3 × (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # 3 × (B, H, T, D)
        # softmax(q kᵀ / √D + causal mask) v
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) → (B, T, C), heads side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Widen four times, GELU, narrow again: (B, T, C) → (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): (B, T, C) → (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) → (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "fill in vocab_size before building the model"
        self.wte = _table(config.vocab_size, config.n_embd)
        self.wpe = _table(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, idx: Tensor) -> Tensor:
        position = torch.arange(idx.size(1), device=idx.device)  # (T,)
        x = self.drop(self.wte(idx) + self.wpe(position))  # (B, T, C) + (T, C)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


def _table(rows: int, width: int) -> nn.Embedding:
    """Without values, which init_weight gives: to draw them on the meta device, torch would load its compiler first."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class GPT(nn.Module):
    """Token ids to the logits of the next token: (B, T) → (B, T, V). The head's matrix is the token table's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "fill in vocab_size before building the model"
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and, with targets, the mean cross-entropy in nats/token.

        idx, targets: (B, T) int64, T ≤ block_size. Returns logits (B, T, V) and the loss, a scalar; without targets,
        logits (B, 1, V) of the last position, and None.
        """
        if targets is None:
            return self._logits(idx, last_only=True), None
        logits = self._logits(idx)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)).float(), targets.reshape(-1))

    def logits(self, idx: Tensor) -> Tensor:
        """Logits of the next token at each position: (B, T) int64 → (B, T, V)."""
        return self._logits(idx)

    def _logits(self, idx: Tensor, last_only: bool = False) -> Tensor:
        T, block_size = idx.size(1), self.config.block_size
        assert block_size >= T, f"{T} tokens do not fit into block_size {block_size}"
        x = self.transformer(idx)  # (B, T, C)
        return self.lm_head(x[:, -1:] if last_only else x)

    def init_weights(self, seed: int) -> "GPT":
        """init_weight() for each weight."""
        for name, parameter in self.named_parameters():
            init_weight(name, parameter, seed, self.config.n_layer)
        return self

    def crop_block_size(self, block_size: int) -> None:
        """Keep the first `block_size` positions only: a shorter context from weights trained with a longer one."""
        assert block_size <= self.config.block_size
        self.config = self.config.model_copy(update={"block_size": block_size})
        self.transformer.wpe = nn.Embedding.from_pretrained(self.transformer.wpe.weight[:block_size], freeze=False)

    def num_params(self, non_embedding: bool = False) -> int:
        """Parameters, the tied table counted once; non_embedding: without the position table, as nanoGPT prints it."""
        total = sum(p.numel() for p in self.parameters())
        return total - (self.transformer.wpe.weight.numel() if non_embedding else 0)

    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward: 6 N for the matrices, 12·L·H·D·T for attention.

        Source: Chowdhery et al. 2022, "PaLM", appendix B.
        """
        c = self.config
        return 6 * self.num_params(non_embedding=True) + 12 * c.n_layer * c.n_embd * c.block_size


@torch.no_grad()
def init_weight(name: str, parameter: nn.Parameter, seed: int, n_layer: int) -> None:
    """nanoGPT's initialisation: N(0, 0.02), the two residual projections of a block N(0, 0.02 / √(2·n_layer)).

    Each weight has a generator of its own, seeded by (seed, its name in GPT), on the CPU: the values depend neither on
    the device, nor on the number of ranks, nor on which other weights there are.
    """
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim == 1:  # LayerNorm
        parameter.fill_(1.0)
    else:
        scale = 1 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 1.0
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02 * scale, generator=generator))


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1
