"""llm.c's files, out: weights that train_gpt2 begins with, and its vocabulary.

Weights: 256 little-endian int32 (magic, version 3 for fp32, block_size, vocabulary, layers, heads,
width, rows of the table), then the tensors in the order of TENSORS, each over all layers, (out, in)
as here. Its shards are our shards.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import CannotCreateError, ConfigError
from nanogpt_dist.interop.exportable import refuse_beyond_gpt2
from nanogpt_dist.tokenizer import Tokenizer

MODEL_MAGIC, FP32 = 20240326, 3
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
MULTIPLE = 128  # of which the rows of the token table are
LAYERS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
MODEL, VOCABULARY = "gpt2_124M.bin", "gpt2_tokenizer.bin"  # the names that its CPU trainer opens


def write(
    out: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    step: int = 0,
) -> Path:
    """Write the folder `out` with both files and return it.

    Zeros stand for biases that are not there.

    Raises ConfigError for an architecture that is not GPT-2's or that llm.c computes otherwise,
    CannotCreateError, StorageError.
    """
    refuse_beyond_gpt2(config, "llm.c")
    if config.gelu != "tanh":
        raise ConfigError(
            "llm.c has the tanh form of GELU, this model the exact one: it would compute something "
            "else; train one with --gelu tanh"
        )
    if max(map(len, tokenizer.tokens)) > 255:
        raise ConfigError(
            f"{tokenizer.name} has a token of more than 255 bytes, which llm.c's file cannot hold"
        )
    if tokenizer.eot_id is None:
        raise ConfigError(
            f"{tokenizer.name} has no end of text, which llm.c begins its samples with"
        )
    if out.exists():
        raise CannotCreateError(f"{out} exists already; give another folder")

    def fill(staging: Path) -> None:
        with (staging / MODEL).open("wb") as file:
            file.writelines(model_pieces(config, weights, tokenizer.n_vocab))
        (staging / VOCABULARY).write_bytes(tokenizer_bytes(tokenizer))

    return storage.commit(out.parent, out.name, fill, {"step": step})


def model_pieces(config: ModelConfig, weights: dict[str, Tensor], n_vocab: int) -> Iterator[bytes]:
    """The weight file, piece by piece.

    n_vocab: ids of the tokenizer; the embedding's other rows are padding.
    """
    rows = -(-n_vocab // MULTIPLE) * MULTIPLE
    table = torch.zeros(rows, config.n_embd)
    table[:n_vocab] = weights["transformer.wte.weight"][:n_vocab]
    sizes = [config.block_size, n_vocab, config.n_layer, config.n_head, config.n_embd, rows]

    def bias(name: str) -> Tensor:
        return weights.get(f"{name}.bias", torch.zeros(weights[f"{name}.weight"].size(0)))

    tensors = [table, weights["transformer.wpe.weight"]]
    for part in LAYERS:
        names = [f"transformer.h.{i}.{part}" for i in range(config.n_layer)]
        tensors += [weights[f"{name}.weight"] for name in names]
        tensors += [bias(name) for name in names]
    tensors += [weights["transformer.ln_f.weight"], bias("transformer.ln_f")]
    yield _header(MODEL_MAGIC, FP32, *sizes)
    for tensor in tensors:
        yield tensor.float().contiguous().numpy().tobytes()


def tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    """The vocabulary file: of each id a length byte and its bytes."""
    assert tokenizer.eot_id is not None
    tokens = [*tokenizer.tokens, *[b""] * (tokenizer.n_vocab - len(tokenizer.tokens))]
    for name, number in tokenizer.specials.items():
        tokens[number] = name.encode()[:255]
    header = _header(TOKENIZER_MAGIC, TOKENIZER_VERSION, tokenizer.n_vocab, tokenizer.eot_id)
    return header + b"".join(bytes([len(token)]) + token for token in tokens)


def _header(*words: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[: len(words)] = words
    return header.tobytes()
