"""The bytes of a forward and backward pass of one rank, by arithmetic, no model built.

Letters: N = tokens of a micro-batch, C = n_embd, D = width of a head, K = heads of keys and values,
F = width of the MLP, V = vocab_size, P = parameters, S = ranks that share one copy.

What a pass keeps until its backward pass was found by tracing the compiled pass and by running the
eager one on shapes alone; tests hold these formulas against both.

Sources: Rajbhandari et al. 2020, "ZeRO", §3 (what takes memory); Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", §4 (activations of a block).
"""

from dataclasses import dataclass, replace

import torch

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.model import cpu_kernels, head_loss, kernels

FP32 = 4  # bytes of a weight, and of its gradient


@dataclass(frozen=True)
class Pass:
    """How a rank makes one forward and backward pass, with products in `dtype`.

    whole: all weights on each rank (single, ddp); otherwise each holds 1/shard. buckets: there is
    memory for reduced gradients all the time (ddp). micro_batches: of this rank in a step.
    state_bytes: of the optimizer's state, for each parameter, as a mean. cpu_kernels: with those
    made for CPUs.
    """

    whole: bool
    buckets: bool
    shard: int
    activation_checkpointing: str
    batch_size: int
    micro_batches: int
    dtype: torch.dtype
    compiled: bool
    state_bytes: float
    cuda: bool = True
    cpu_kernels: bool = False

    @property
    def low(self) -> int:
        """Bytes of a number in a matrix product."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has: all, those of its largest block, of a block's matrices.

    root: those in no block: embeddings, head, last norm.
    """

    total: int
    root: int
    block: int
    matrices: int


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of config's model; vocab_size must be set."""
    assert config.vocab_size is not None
    C, V = config.n_embd, config.vocab_size
    qkv, wide = _qkv(config), wide_width(config)
    matrices = C * qkv + C * C + C * wide + config.mlp_width * C
    norm = (2 * C if config.bias and config.norm == "layernorm" else C) * config.norm_weights
    biases = qkv + C + wide + C if config.bias else 0
    block = matrices + biases + 2 * norm + (2 * config.head_size if config.qk_norm else 0)
    block += 2 if config.residual_scalars else 0
    layers = [config.has_value_embedding(layer) for layer in range(config.n_layer)]
    values = V * config.kv_heads * config.head_size + 1  # of a block that has them
    positions = 0 if config.rotary else config.block_size * C
    root = (1 if config.tie_embeddings else 2) * V * C + positions + norm
    root += norm if config.embedding_norm else 0
    root += (config.bigram_rows or 0) * C + (config.gate_width + 1 if config.smear else 0)
    total = root + config.n_layer * block + sum(layers) * values
    return Parameters(total, root, block + (values if any(layers) else 0), matrices)


def _qkv(config: ModelConfig) -> int:
    """Width of queries, keys and values together, (H + 2K)·D."""
    return config.n_embd + 2 * config.kv_heads * config.head_size


def wide_width(config: ModelConfig) -> int:
    """Width of what the MLP's first product gives: SwiGLU's has a gate beside it."""
    return 2 * config.mlp_width if config.mlp == "swiglu" else config.mlp_width


def block_bytes(config: ModelConfig, how: Pass) -> int:
    """Bytes that one block keeps of each token until its backward pass.

    Of GPT-2 in bf16: 36 C + 4 H under autocast, whose residual stream is float32, and 32 C + 4 H
    where fsdp has cast the weights. selective: 22 C, and 20 C. full: the block's input alone.
    """
    C, qkv, wide, low = config.n_embd, _qkv(config), wide_width(config), how.low
    stream, lse = stream_bytes(how), 4 * config.n_head  # log Σ exp of each head's scores, float32
    if how.activation_checkpointing == "full":
        return stream * C
    if how.activation_checkpointing == "selective":
        # its input; qkv, attention, its projection, and the wide product; eager: the narrow, too
        products = stream * C + low * (qkv + C + wide + (0 if how.compiled else C))
        return products if _own_attention(config, how) else products + low * C + lse
    kept = 2 * stream * C + 2 * low * C  # both norms: what they read, and what they give
    kept += low * (wide + config.mlp_width)  # before and behind the activation
    kept += low * (qkv + C)  # attention: q, k and v, and what comes of them
    if _own_attention(config, how):
        kept += low * config.n_head * cpu_kernels.keys_of_a_query(config.block_size)
    else:
        kept += lse
    return kept + _options_bytes(config, how)


def _own_attention(config: ModelConfig, how: Pass) -> bool:
    """Whether attention is the one made for CPUs, which keeps each head's probabilities."""
    plain = kernels.has_plain_heads(config) and config.block_size <= cpu_kernels.LONGEST
    return how.cpu_kernels and plain


def _options_bytes(config: ModelConfig, how: Pass) -> int:
    """What the options beyond GPT-2, and dropout, add to what a block keeps of a token."""
    C, low, KD = config.n_embd, how.low, config.kv_heads * config.head_size
    kept = 0
    if config.residual_scalars and (how.whole or not how.compiled):
        kept += stream_bytes(how) * C  # what the block is given, beside its sum with the embedding
    if config.rotary or config.qk_norm:  # queries and keys anew, and attention's heads side by side
        kept += low * (C + KD) + low * C
    if config.qk_norm:
        kept += 4 * (config.n_head + config.kv_heads)
        # what is normed, in float32, and what the norm gives, which autocast makes low
        kept += 0 if how.compiled else FP32 * (C + KD) * (2 if low < FP32 else 1)
    if config.norm == "rmsnorm" and not how.compiled:
        kept += 2 * FP32 * C if config.norm_weights else 0  # what the weights are multiplied with
        # what both read, in float32 in place of a low type's
        kept += 2 * (FP32 - stream_bytes(how)) * C
    if config.mlp == "swiglu" and not how.compiled:
        kept += low * config.mlp_width  # of the gate
    if config.dropout:
        kept += 2 * C  # two masks of a byte each; attention's own is drawn again
        if config.intra_document:  # its mask, as numbers that are added to the scores
            kept += low * config.block_size
    return kept


def stream_bytes(how: Pass) -> int:
    """Bytes of a number in the residual stream: autocast keeps it in float32."""
    return FP32 if how.whole else how.low


def activation_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes of all that is kept between forward and backward pass, but for the head's logits."""
    C, low, tokens = config.n_embd, how.low, how.batch_size * config.block_size
    P = count_parameters(config)
    # token ids and targets; the embeddings' sum, and what the last norm gives
    kept = tokens * (16 + stream_bytes(how) * C + low * C + (C if config.dropout else 0))
    kept += tokens * stream_bytes(how) * C if config.embedding_norm else 0  # what it reads
    kept += tokens * stream_bytes(how) * 2 * C if config.smear else 0  # it, and the one before it
    kept += tokens * (2 * 8 if config.bigram_rows is not None else 0)  # ids
    kept += config.n_layer * tokens * block_bytes(config, how)
    kept += tokens * _value_bytes(config, how)
    if how.whole and low < FP32:  # weights as the products read them
        assert config.vocab_size is not None
        kept += 0 if has_cpu_head(config, how) else low * config.vocab_size * C
        if how.activation_checkpointing == "none":
            kept += low * config.n_layer * P.matrices
    return kept


def _value_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes of the value embeddings that all blocks keep of each token: rows before their scale."""
    if how.activation_checkpointing != "none":
        return 0
    blocks = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    return blocks * stream_bytes(how) * config.kv_heads * config.head_size


def temporary_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes that the backward pass of one block makes on its way.

    With activation checkpointing all that a block otherwise keeps is there once more.
    """
    low, tokens = how.low, how.batch_size * config.block_size
    plain = replace(how, activation_checkpointing="none")
    again = block_bytes(config, plain) - block_bytes(config, how)
    if how.activation_checkpointing == "selective" and not how.compiled:
        again += low * config.n_embd  # what is kept of the narrow product is of no use
    # of a squared ReLU: twice the ReLU, and the product with the gradient
    squares = 2 * low * config.mlp_width if config.mlp == "relu2" and not how.compiled else 0
    made = tokens * (low * wide_width(config) + squares + again)
    P = count_parameters(config)
    if not how.whole:
        # its gradients, and the stream's; gathered_bytes() has the next block
        return made + low * (P.block + tokens * config.n_embd)
    if again and low < FP32:
        made += low * P.matrices
    return made + low * config.n_embd * wide_width(config)


def forward_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes that an eager forward pass with activation checkpointing drops at its end.

    Autocast's copies of the weights, and what the last block makes and does not keep.
    """
    mode, width = how.activation_checkpointing, config.mlp_width
    if how.compiled or mode == "none" or not how.whole:
        return 0
    made = width + (wide_width(config) if mode == "full" else 0)
    cast = config.n_layer * count_parameters(config).matrices if how.low < FP32 else 0
    return how.low * (cast + made * how.batch_size * config.block_size)


def head_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes that the head's loss and its gradients hold at most."""
    assert config.vocab_size is not None
    N, V, C = how.batch_size * config.block_size, config.vocab_size, config.n_embd
    squashed = config.logit_softcap is not None
    if has_cpu_head(config, how):
        return max(cpu_head_bytes(N, V, C, how.low, stream_bytes(how)))
    whole, chunked = (
        head_loss.peak_bytes(N, V, C, how.dtype, chunked, how.compiled, squashed)
        for chunked in (False, True)
    )
    if config.chunked_loss is not None:
        return chunked if config.chunked_loss else whole
    return chunked if how.cuda and whole > head_loss.WHOLE_AT_MOST else whole


def has_cpu_head(config: TrainConfig, how: Pass) -> bool:
    """Whether the loss is the one made for CPUs."""
    return how.cpu_kernels and config.chunked_loss is None


def cpu_head_bytes(N: int, V: int, C: int, low: int, held: int) -> tuple[int, int]:
    """What its passes take; input and weight have `held` bytes a number, and copies in `low`.

    In the forward pass logits and what is made of some at a time, or the weight's gradient; in the
    backward pass that gradient as it is kept, in the weight's type, and scaled.
    """
    logits = min(N * V, cpu_kernels.LOGITS)
    summed = low if N * V <= cpu_kernels.LOGITS else FP32
    copied = low if held > low else 0  # of input and weight
    pieces = max(2 * FP32 * min(logits, cpu_kernels.IN_CACHE), low * V * C)
    forward = copied * V * C + low * logits + pieces + (FP32 * V * C if summed > low else 0)
    backward = (summed + held + (held if held != summed else 0)) * V * C
    inputs = (low + (held if copied else 0)) * N * C
    return forward + inputs, backward + inputs


def gathered_bytes(config: TrainConfig, how: Pass) -> int:
    """Bytes of fsdp's gathered weights: the root's, and a block's with its buffer, or all."""
    if how.whole:
        return 0
    P, block = count_parameters(config), padded_block(config, how)
    padding = config.n_layer * (block - P.block)
    weights = P.root + block if config.reshard_after_forward else P.total + padding
    return how.low * (weights + block)


def padded_block(config: TrainConfig, how: Pass) -> int:
    """Elements of the largest block's tensors as fsdp exchanges them: each rank as many rows.

    Of 1,600 rows each of 1,024 ranks has two, which makes 2,048.
    """
    P, C, S = count_parameters(config), config.n_embd, how.shard
    shapes = [(_qkv(config), C), (C, C), (wide_width(config), C), (C, config.mlp_width)]
    return P.block - P.matrices + sum(-(-rows // S) * S * columns for rows, columns in shapes)
