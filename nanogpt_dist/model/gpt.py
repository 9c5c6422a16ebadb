"""GPT-2 in reading order: attention → MLP → block → GPT. Names are nanoGPT's.

Shape letters: B sequences in the batch, T tokens of a sequence (≤ block_size), C = n_embd,
H = n_head, D = C / H, K = heads of keys and values, F = width of the MLP, V = vocab_size. In GPT-2
K = H and F = 4 C.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3 (pre-norm,
residual scaling); Vaswani et al. 2017, "Attention Is All You Need", §3.2; Hendrycks & Gimpel 2016,
"Gaussian Error Linear Units"; Press & Wolf 2017, "Using the Output Embedding to Improve Language
Models" (tied embeddings). Of the options: Zhang & Sennrich 2019, "Root Mean Square Layer
Normalization"; Shazeer 2020, "GLU Variants Improve Transformer"; So et al. 2021, "Primer" (squared
ReLU); Henry et al. 2020, "Query-Key Normalization for Transformers"; Ainslie et al. 2023, "GQA".
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.model.embedding import (
    BigramEmbedding,
    Smear,
    Table,
    ValueEmbedding,
    embeddings_before,
    ids_before,
)
from nanogpt_dist.model.head_loss import logits_of, squashed
from nanogpt_dist.model.initial_weights import init_weight
from nanogpt_dist.model.kernels import TORCH_KERNELS, Kernels
from nanogpt_dist.model.positions import SequencePositions, sequence_positions

EPS = 1e-5  # under the root of a variance

BlockForward = Callable[..., Tensor]  # (x (B, T, C), positions, x0, idx) → (B, T, C)
BlockWrapper = Callable[[BlockForward], BlockForward]


class CausalSelfAttention(nn.Module):
    """Multi-head attention; a position sees itself and those before it: (B, T, C) → (B, T, C).

    layer: number of the block, from 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels = TORCH_KERNELS,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention, self.rotate = kernels.attention, kernels.rotate
        self.dropout = config.dropout
        H, K, D = config.n_head, config.kv_heads, config.head_size
        self.widths = (H * D, K * D, K * D)  # of queries, keys and values, which are made at once
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = nn.RMSNorm(D, eps=EPS), nn.RMSNorm(D, eps=EPS)
        self.window = config.window_of(layer)
        self.adds_values = config.has_value_embedding(layer)
        if self.adds_values:
            self.value_embedding = ValueEmbedding(config)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        positions: SequencePositions | None = None,
        idx: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.heads(self.c_attn(x), positions, idx)  # (B, H, T, D), 2 × (B, K, T, D)
        mask, dropout = None, self.dropout if self.training else 0.0
        if positions is not None:
            mask = positions.mask if self.window is None else positions.window_mask
        y = self.attention(q, k, v, mask, dropout, self.window)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(x.shape)  # (B, T, C), heads side by side
        return self.resid_dropout(self.c_proj(y))

    def heads(
        self,
        qkv: Tensor,
        positions: SequencePositions | None,
        idx: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ready for the dot product.

        (B, T, (H + 2K)·D) → (B, H, T, D), 2 × (B, K, T, D). idx: token ids, (B, T), for a value
        embedding.
        """
        B, T, _ = qkv.shape
        q, k, v = (
            t.view(B, T, -1, self.config.head_size).transpose(1, 2)
            for t in qkv.split(self.widths, dim=2)
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q.float()).to(v.dtype), self.k_norm(k.float()).to(v.dtype)
        if self.config.rotary:
            assert positions is not None
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        if self.adds_values:
            assert idx is not None
            more = self.value_embedding(idx).to(v.dtype)  # (B, T, K·D)
            v = v + more.view(B, T, -1, self.config.head_size).transpose(1, 2)
        return q, k, v


class SwiGLU(nn.Module):
    """silu(first half) ⊙ second half: (B, T, 2F) → (B, T, F)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class SquaredReLU(nn.Module):
    """max(x, 0)²: (B, T, F) → (B, T, F)."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.squared_relu = kernels.squared_relu

    def forward(self, x: Tensor) -> Tensor:
        return self.squared_relu(x)


def _activation(config: ModelConfig, kernels: Kernels) -> nn.Module:
    if config.mlp == "gelu":
        return nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
    return SwiGLU() if config.mlp == "swiglu" else SquaredReLU(kernels)


class MLP(nn.Module):
    """Widen four times, GELU, narrow again: (B, T, C) → (B, T, C)."""

    def __init__(self, config: ModelConfig, kernels: Kernels = TORCH_KERNELS) -> None:
        super().__init__()
        width = config.mlp_width
        self.c_fc = nn.Linear(
            config.n_embd, 2 * width if config.mlp == "swiglu" else width, bias=config.bias
        )
        self.act = _activation(config, kernels)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c_fc(x))  # (B, T, F)
        return self.dropout(self.c_proj(x))  # (B, T, C)


def _norm(config: ModelConfig) -> nn.Module:
    C, weights = config.n_embd, config.norm_weights
    if config.norm == "rmsnorm":
        return nn.RMSNorm(C, eps=EPS, elementwise_affine=weights)
    return nn.LayerNorm(C, eps=EPS, elementwise_affine=weights, bias=config.bias)


class ResidualScalars(nn.Module):
    """a·x + b·x0 of the stream and of what went into the first block: 2 × (B, T, C) → (B, T, C).

    The scalars are learnt; a begins as 1 and b as 0, so that a block reads x alone.
    """

    def __init__(self) -> None:
        super().__init__()
        # (1,) each, as fsdp cannot shard what has no dimension
        self.x_scale = nn.Parameter(torch.empty(1))
        self.x0_scale = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        return torch.addcmul(x * self.x_scale, x0, self.x0_scale)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): (B, T, C) → (B, T, C).

    With residual_scalars, x is mixed with x0 first, which went into the first block: (B, T, C).
    wrap: what forward() is run through, as activation checkpointing; None: nothing. layer: its
    number, from 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels = TORCH_KERNELS,
        wrap: BlockWrapper | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        if config.residual_scalars:
            self.residual = ResidualScalars()
        self.ln_1 = _norm(config)
        self.attn = CausalSelfAttention(config, kernels, layer)
        self.ln_2 = _norm(config)
        self.mlp = MLP(config, kernels)
        self.wrapped = None if wrap is None else wrap(self.sublayers)

    def forward(
        self,
        x: Tensor,
        positions: SequencePositions | None = None,
        x0: Tensor | None = None,
        idx: Tensor | None = None,
    ) -> Tensor:
        if self.wrapped is not None:
            return self.wrapped(x, positions, x0, idx)
        return self.sublayers(x, positions, x0, idx)

    def sublayers(
        self,
        x: Tensor,
        positions: SequencePositions | None,
        x0: Tensor | None,
        idx: Tensor | None,
    ) -> Tensor:
        """What forward() computes."""
        x = self.mixed(x, x0)
        x = x + self.attn(self.ln_1(x), positions, idx)
        return x + self.mlp(self.ln_2(x))

    def mixed(self, x: Tensor, x0: Tensor | None) -> Tensor:
        """What the sublayers begin with: x, or its sum with x0."""
        return x if x0 is None else self.residual(x, x0)


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) → (B, T, C)."""

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels = TORCH_KERNELS,
        wrap_block: BlockWrapper | None = None,
    ) -> None:
        super().__init__()
        assert config.vocab_size is not None, "fill in vocab_size before building the model"
        self.wte = Table(config.vocab_size, config.n_embd)
        if not config.rotary:
            self.wpe = Table(config.block_size, config.n_embd)
        if config.bigram_rows is not None:
            self.bigram = BigramEmbedding(config)
        if config.embedding_norm:
            self.ln_emb = _norm(config)
        if config.smear:
            self.smear = Smear(config)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(
            Block(config, kernels, wrap_block, layer) for layer in range(config.n_layer)
        )
        self.ln_f = _norm(config)
        self.config = config

    def forward(self, idx: Tensor) -> Tensor:
        x, positions = self.begin(idx)  # (B, T, C)
        # a view: the first block, compiled, would be another graph where both are one tensor
        x0 = x.view_as(x) if self.config.residual_scalars else None
        ids = idx if self.config.value_embeddings else None
        for block in self.h:
            x = block(x, positions, x0, ids)
        return self.ln_f(x)

    def begin(self, idx: Tensor) -> tuple[Tensor, SequencePositions | None]:
        """What goes into the first block: (B, T, C), and positions where attention reads them."""
        config = self.config
        dropout = self.training and config.dropout > 0
        positions = sequence_positions(idx, config, dropout)
        x = self.drop(self.embed(idx, positions.position_ids))  # (B, T, C)
        needed = config.rotary or config.intra_document or config.shortest_window is not None
        return x, positions if needed else None

    def embed(self, idx: Tensor, position_ids: Tensor) -> Tensor:
        """The embedding of each token at its place: (B, T), (T,) | (B, T) → (B, T, C)."""
        return self.smeared(self.embed_tokens(idx, position_ids), position_ids)

    def embed_tokens(
        self,
        idx: Tensor,
        position_ids: Tensor,
        before: Tensor | None = None,
    ) -> Tensor:
        """Token embedding, and those of position and bigram where there are; normed if asked for.

        (B, T), (T,) | (B, T) → (B, T, C). before: the id before each, (B, T); None: as in idx.
        """
        x = self.wte(idx) if self.config.rotary else self.wte(idx) + self.wpe(position_ids)
        if self.config.bigram_rows is not None:
            before = ids_before(idx, position_ids) if before is None else before
            x = x + self.bigram(idx, before)
        return self.ln_emb(x) if self.config.embedding_norm else x

    def smeared(self, x: Tensor, position_ids: Tensor, before: Tensor | None = None) -> Tensor:
        """Embeddings with those before them mixed in, where asked for: (B, T, C) → (B, T, C).

        before: the embedding before each, (B, T, C); None: as in x.
        """
        if not self.config.smear:
            return x
        return self.smear(x, embeddings_before(x, position_ids) if before is None else before)


class GPT(nn.Module):
    """Token ids to the logits of the next token: (B, T) → (B, T, V).

    n_vocab: ids that the tokenizer has; None: as many as rows, V. Rows from there on only fill the
    token embedding up to a size that devices like: no text has their ids, and their logits are −∞,
    so that they take no probability from the others.
    kernels: what computes attention and loss. wrap_block: what each block's forward is run through.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_vocab: int | None = None,
        kernels: Kernels = TORCH_KERNELS,
        wrap_block: BlockWrapper | None = None,
    ) -> None:
        super().__init__()
        assert config.vocab_size is not None, "fill in vocab_size before building the model"
        self.config = config
        self.n_vocab = config.vocab_size if n_vocab is None else n_vocab
        self.head_loss = kernels.head_loss
        self.transformer = Transformer(config, kernels, wrap_block)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> "GPT":
        """Make the head's matrix the token embedding's, where they are tied.

        Moving a model to another device cuts the tie.
        """
        if self.config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        return self

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits and, with targets, the mean cross-entropy in nats/token.

        idx, targets: (B, T) int64, T ≤ block_size. Returns logits (B, T, V) and the loss, a scalar;
        without targets, logits (B, 1, V) of the last position, and None; where the kernels have a
        head_loss, None and the loss.
        """
        if targets is None:
            return self._logits(idx, last_only=True), None
        if self.head_loss is not None:
            x = self._hidden(idx).flatten(0, 1)  # (N, C), N = B·T
            weight, cap = self.lm_head.weight, self.config.logit_softcap
            return None, self.head_loss(x, weight, targets.flatten(), self.n_vocab, cap)
        logits = self._logits(idx)  # (B, T, V)
        return logits, F.cross_entropy(
            logits.view(-1, logits.size(-1)).float(), targets.reshape(-1)
        )

    def refuse_unknown(self, highest: int) -> None:
        """Raises BadDataError for an id without a row in the token embedding.

        The lookup itself would not tell whose it is.
        """
        rows = self.transformer.wte.weight.size(0)
        if highest >= rows:
            raise BadDataError(
                f"the tokenizer gives id {highest}, the model has {rows} rows: they are not of one "
                "model"
            )

    def logits(self, idx: Tensor) -> Tensor:
        """Logits of the next token at each position: (B, T) int64 → (B, T, V)."""
        return self._logits(idx)

    def _logits(self, idx: Tensor, last_only: bool = False) -> Tensor:
        x = self._hidden(idx)  # (B, T, C)
        return self.head(x[:, -1:] if last_only else x)

    def _hidden(self, idx: Tensor) -> Tensor:
        """What the head reads: (B, T) → (B, T, C)."""
        T, block_size = idx.size(1), self.config.block_size
        assert block_size >= T, f"{T} tokens do not fit into block_size {block_size}"
        return self.transformer(idx)

    def head(self, x: Tensor) -> Tensor:
        """Logits: (B, T, C) → (B, T, V)."""
        weight, cap = self.lm_head.weight, self.config.logit_softcap
        if self.n_vocab < weight.size(0):
            return logits_of(x, weight, self.n_vocab, cap)
        logits = self.lm_head(x)
        return logits if cap is None else squashed(logits, cap)

    def init_weights(self, seed: int) -> "GPT":
        """init_weight() for each weight."""
        for name, parameter in self.named_parameters():
            init_weight(name, parameter, seed, self.config)
        return self

    def crop_block_size(self, block_size: int) -> None:
        """Keep the first `block_size` positions only: a shorter context for the same weights."""
        assert block_size <= self.config.block_size
        self.config = self.transformer.config = self.config.model_copy(
            update={"block_size": block_size}
        )
        if not self.config.rotary:
            cropped = Table(block_size, self.config.n_embd)
            cropped.weight = nn.Parameter(self.transformer.wpe.weight.detach()[:block_size])
            self.transformer.wpe = cropped

    def num_params(self, non_embedding: bool = False) -> int:
        """Parameters, tied embeddings counted once.

        non_embedding: without the position embedding, as nanoGPT prints it.
        """
        total = sum(p.numel() for p in self.parameters())
        return total - (
            self.transformer.wpe.weight.numel() if non_embedding and not self.config.rotary else 0
        )

    def flops_per_token(self, length: int | None = None) -> int:
        """Floating-point operations of forward and backward: 6 N + 12·H·D·Σ S of attention.

        length: of a sequence; None: block_size.
        N: parameters but for those of embeddings, whose rows are looked up; a token embedding that
        is the head's matrix, too, counts. Σ S: tokens that a layer attends to, `length` or its
        window, over all layers. Source: Chowdhery et al. 2022, "PaLM", appendix B.
        """
        c, T = self.config, length or self.config.block_size
        looked_up = sum(each.weight.numel() for each in self.modules() if isinstance(each, Table))
        looked_up -= self.transformer.wte.weight.numel() if c.tie_embeddings else 0
        seen = sum(min(c.window_of(layer) or T, T) for layer in range(c.n_layer))
        return 6 * (self.num_params() - looked_up) + 12 * c.n_embd * seen
