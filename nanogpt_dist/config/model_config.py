"""The settings of the architecture."""

import math
from typing import Any, Literal

from pydantic import model_validator

from nanogpt_dist.config.setting import Settings, by_own_names, setting

BEYOND_GPT2 = (
    *("rotary", "norm", "norm_weights", "embedding_norm", "mlp", "qk_norm", "n_kv_head"),
    *("tied_head", "logit_softcap", "residual_scalars", "value_embeddings", "bigram_rows", "smear"),
    *("sliding_window", "intra_document"),
)


class ModelConfig(Settings):
    """The architecture: GPT-2. Equal ModelConfigs have checkpoints of equal shapes."""

    block_size: int = setting(
        1024, "Model", "Context length, in tokens.", ge=1, le=2**24, on_resume="refuse", scope="run"
    )
    vocab_size: int | None = setting(
        None,
        "Model",
        "Rows of the token embedding; unset: the data set's ids, up to a multiple of 64 "
        "(characters: just theirs).",
        ge=1,
        le=2**24,
        on_resume="refuse",
        scope="run",
    )
    n_layer: int = setting(
        12, "Model", "Transformer blocks.", ge=1, le=2**16, on_resume="refuse", scope="run"
    )
    n_head: int = setting(
        12,
        "Model",
        "Attention heads per block; divides n_embd.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    n_embd: int = setting(
        768,
        "Model",
        "Width of the residual stream.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    dropout: float = setting(
        0.0,
        "Model",
        "Dropout probability; 0 for pretraining, 0.1 and more on little data.",
        ge=0,
        lt=1,
        on_resume="note",
        scope="run",
    )
    bias: bool = setting(
        False,
        "Model",
        "Biases in the linear layers and LayerNorms, as OpenAI's GPT-2 has them.",
        on_resume="refuse",
        scope="run",
    )
    gelu: Literal["exact", "tanh"] = setting(
        "exact",
        "Model",
        "Form of GELU; OpenAI's weights want tanh.",
        on_resume="refuse",
        scope="run",
    )

    # What came after GPT-2; all off by default.
    rotary: bool = setting(
        False,
        "Model options",
        "Rotary positions in every head, in place of the position embedding.",
        on_resume="refuse",
        scope="run",
    )
    rotary_base: float = setting(
        10_000.0,
        "Model options",
        "Base of the rotary wavelengths.",
        gt=1,
        on_resume="refuse",
        scope="run",
    )
    norm: Literal["layernorm", "rmsnorm"] = setting(
        "layernorm",
        "Model options",
        "Normalisation of the stream.",
        on_resume="refuse",
        scope="run",
    )
    norm_weights: bool = setting(
        True,
        "Model options",
        "Weights in the norms of the stream; off: none.",
        on_resume="refuse",
        scope="run",
    )
    embedding_norm: bool = setting(
        False,
        "Model options",
        "A norm of the embedding, before the first block.",
        on_resume="refuse",
        scope="run",
    )
    init: Literal["gpt2", "fan_in"] = setting(
        "gpt2",
        "Model options",
        "First weights; gpt2: N(0, 0.02); fan_in: N(0, 1/√width) in matrices, N(0, 1) in tables.",
        on_resume="ignore",
        scope="run",
    )
    zero_init: bool = setting(
        False,
        "Model options",
        "Begin with output projections, and a head of its own, that are zero.",
        on_resume="ignore",
        scope="run",
    )
    logit_softcap: float | None = setting(
        None,
        "Model options",
        "Squash logits to ± this: cap · tanh(logits / cap); unset: off.",
        gt=0,
        on_resume="refuse",
        scope="run",
    )
    residual_scalars: bool = setting(
        False,
        "Model options",
        "Each block reads a·x + b·(the embedding), with scalars a and b that are learnt.",
        on_resume="refuse",
        scope="run",
    )
    value_embeddings: bool = setting(
        False,
        "Model options",
        "Every other block adds a token embedding of its own to attention's values.",
        on_resume="refuse",
        scope="run",
    )
    bigram_rows: int | None = setting(
        None,
        "Model options",
        "Rows of an embedding of the last two tokens, hashed; unset: none.",
        ge=1,
        le=2**28,
        on_resume="refuse",
        scope="run",
    )
    smear: bool = setting(
        False,
        "Model options",
        "Add to each embedding, through a gate, that of the token before.",
        on_resume="refuse",
        scope="run",
    )
    sliding_window: int | None = setting(
        None,
        "Model options",
        "Tokens that a short layer attends to, its own included; unset: all layers are long.",
        ge=1,
        le=2**24,
        on_resume="refuse",
        scope="run",
    )
    window_pattern: str = setting(
        "SSSL",
        "Model options",
        "Which layers are short (S) and which are long (L), repeated; the last is long.",
        pattern=r"^[SL]{1,64}$",
        on_resume="refuse",
        scope="run",
    )
    mlp: Literal["gelu", "swiglu", "relu2"] = setting(
        "gelu",
        "Model options",
        "relu2: squared ReLU; swiglu: gated, 8/3 wide instead of 4, to a multiple of 64.",
        on_resume="refuse",
        scope="run",
    )
    qk_norm: bool = setting(
        False,
        "Model options",
        "RMSNorm of each query and key before the dot product.",
        on_resume="refuse",
        scope="run",
    )
    n_kv_head: int | None = setting(
        None,
        "Model options",
        "Heads of keys and values, each for a group of queries; unset: n_head.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    tied_head: bool = setting(
        True,
        "Model options",
        "The head's matrix is the token embedding; off: one of its own.",
        on_resume="refuse",
        scope="run",
    )
    intra_document: bool = setting(
        False,
        "Model options",
        "Attention and positions begin anew at each end-of-text token.",
        on_resume="refuse",
        scope="run",
    )
    eot_id: int | None = setting(
        None,
        "Model options",
        "The end-of-text id of intra_document; unset: the data set's.",
        ge=0,
        le=2**24,
        on_resume="refuse",
        scope="run",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_their_own_names(cls, values: Any) -> Any:
        return by_own_names(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.rotary and self.head_size % 2:
            raise ValueError(
                f"rotary turns pairs, a head of {self.head_size} cannot be halved; change n_head"
            )
        return self

    @property
    def tie_embeddings(self) -> bool:
        """Whether the head's matrix is the token embedding."""
        return self.tied_head

    @property
    def head_size(self) -> int:
        """Width of one head, D."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_width(self) -> int:
        """Width of the MLP where it is widest.

        Three matrices of SwiGLU's have as many weights as two 4 C wide.
        """
        return math.ceil(8 * self.n_embd / 3 / 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embd

    @property
    def shortest_window(self) -> int | None:
        """Tokens that a short layer attends to; None: all layers are long."""
        short = any(self.window_of(layer) is not None for layer in range(self.n_layer))
        return self.sliding_window if short else None

    @property
    def gate_width(self) -> int:
        """Channels that the smear's gate reads; Source: nanochat."""
        return min(24, self.n_embd)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether this block, of which the first is 0, adds an embedding to its values.

        Every other one, so that the last does.
        """
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2

    def window_of(self, layer: int) -> int | None:
        """Tokens that this block attends to, its own included; None: all. The first block is 0."""
        size, pattern = self.sliding_window, self.window_pattern
        is_long = layer == self.n_layer - 1 or pattern[layer % len(pattern)] == "L"
        return None if size is None or is_long or size >= self.block_size else size

    def beyond_gpt2(self) -> list[str]:
        """The options that are on, which no GPT-2 has."""
        plain = ModelConfig()
        return [name for name in BEYOND_GPT2 if getattr(self, name) != getattr(plain, name)]
