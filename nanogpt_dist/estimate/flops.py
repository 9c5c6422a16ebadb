"""Floating-point operations of a training, component by component. No model, no tensors.

A product of (n, a) and (a, b) is 2·n·a·b, and its backward pass twice that: one product for the
input's gradient, one for the weight's. What is no product (norms, activations, softmax) is not
counted, as nowhere in the field. Components are named as in the checkpoint, without `transformer.`
and the block's number.

Attention is counted in one of three ways, for T tokens and a window of W:
full: each query with min(W, T) keys, masked or not, as an MFU counts it (Chowdhery et al. 2022,
"PaLM", appendix B). causal: the pairs alone that the mask lets through, about half. dense: with all
T keys, as a kernel does that knows no windows, and torch's counter.
"""

from typing import Literal

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.inspect.formulas import count_by_arithmetic

Attention = Literal["full", "causal", "dense"]

SDPA, HEAD, LAST = "h.attn.sdpa", "lm_head", "h.mlp.c_proj"
BACKWARD = 2  # times the forward pass


def forward_flops(
    config: ModelConfig,
    length: int | None = None,
    attention: Attention = "full",
) -> dict[str, int]:
    """Of the forward pass of one sequence: {component: FLOPs}, summed over the blocks.

    length: tokens of the sequence; None: block_size. config.vocab_size must be set.
    """
    assert config.vocab_size is not None
    T, C, F, L = length or config.block_size, config.n_embd, config.mlp_width, config.n_layer
    wide = 2 * F if config.mlp == "swiglu" else F
    qkv = C + 2 * config.kv_heads * config.head_size
    pairs = sum(_pairs(T, config.window_of(layer), attention) for layer in range(L))
    return {
        "h.attn.c_attn": L * 2 * T * C * qkv,
        SDPA: 2 * 2 * C * pairs,  # q kᵀ, and the probabilities times v: H heads of width D
        "h.attn.c_proj": L * 2 * T * C * C,
        "h.mlp.c_fc": L * 2 * T * C * wide,
        LAST: L * 2 * T * F * C,
        HEAD: 2 * T * C * config.vocab_size,
    }


def _pairs(T: int, window: int | None, attention: Attention) -> int:
    """Pairs of a query and a key that one layer multiplies."""
    W = min(window or T, T)
    if attention == "dense":
        return T * T
    if attention == "full":
        return T * W
    return W * (W + 1) // 2 + (T - W) * W  # the first W queries see 1, 2, …, W keys


def recomputed_flops(
    config: ModelConfig,
    activation_checkpointing: str,
    length: int | None = None,
    attention: Attention = "full",
) -> int:
    """Of one sequence: what activation checkpointing computes again in the backward pass.

    full: each block's products but the last, whose result no gradient needs; with dropout, which
    keeps its mask, that one, too. selective: none, it keeps what products and attention give.
    """
    if activation_checkpointing != "full":
        return 0
    forward = forward_flops(config, length, attention)
    needed = [name for name in forward if name != HEAD and (name != LAST or config.dropout > 0)]
    return sum(forward[name] for name in needed)


def hardware_over_model(
    config: ModelConfig,
    activation_checkpointing: str,
    length: int | None = None,
) -> float:
    """How many times the FLOPs without recomputation those with it are: 1 to about 4/3."""
    T = length or config.block_size
    again = recomputed_flops(config, activation_checkpointing, length)
    return 1 + again / (T * model_flops_per_token(config, length))


def model_flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """What an MFU counts of a token, forward and backward: 6 N + 12·H·D·Σ S.

    The model's own flops_per_token() without a model. N are all parameters but those of embeddings:
    beside those of products the few of norms, biases and scalars, at 6 each, too.
    """
    T = length or config.block_size
    counted = count_by_arithmetic(config)
    looked_up = ("wpe", "bigram")
    N = sum(count for name, count in counted.items() if name not in looked_up)
    if not config.tie_embeddings:
        N -= counted["wte"]
    if "h.attn.value_embedding" in counted:
        layers = [config.has_value_embedding(layer) for layer in range(config.n_layer)]
        N -= counted["h.attn.value_embedding"] - sum(layers)  # each has a scale, which counts
    attention = forward_flops(config, length)[SDPA]
    return 6 * N + (1 + BACKWARD) * attention // T


def training_flops(
    config: TrainConfig,
    activation_checkpointing: str = "none",
    attention: Attention = "full",
) -> tuple[int, int]:
    """Of all max_iters steps: those of the model, as an MFU counts, and those of the hardware.

    The hardware's are those of products, with what is computed again; of ramps each piece counts
    with its own length.
    """
    model = hardware = 0
    for length, sequences in sequences_of(config).items():
        model += sequences * length * model_flops_per_token(config, length)
        once = (1 + BACKWARD) * sum(forward_flops(config, length, attention).values())
        again = recomputed_flops(config, activation_checkpointing, length, attention)
        hardware += sequences * (once + again)
    return model, hardware


def sequences_of(config: TrainConfig) -> dict[int, int]:
    """{tokens of a sequence: how many such a training reads}."""
    lengths = sorted({piece.length for piece in config.ramp.pieces})
    return {length: config.ramp.sequences_before(config.max_iters, length) for length in lengths}
