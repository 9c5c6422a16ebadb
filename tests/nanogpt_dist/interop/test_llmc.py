"""llm.c's files, read back as its C code reads them; tests/peers/llmc.py has its trainer go on from
them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import resolve
from nanogpt_dist.errors import CannotCreateError, ConfigError
from nanogpt_dist.interop import llmc
from tests.nanogpt_dist.interop.models import SIZES, bpe, weights

CONFIG = resolve({**SIZES, "vocab_size": 320, "gelu": "tanh", "bias": True})


def test_the_weight_file_is_as_llmc_reads_it(tmp_path: Path) -> None:
    ours = weights(CONFIG)
    llmc.write(tmp_path / "out", CONFIG, ours, bpe())
    data = (tmp_path / "out" / llmc.MODEL).read_bytes()
    header = np.frombuffer(data[:1024], "<i4")
    assert header[:8].tolist() == [20240326, 3, 48, 300, 2, 2, 32, 384]
    L, C, V, T = 2, 32, 384, 48
    shapes = [
        (V, C),
        (T, C),
        (L, C),
        (L, C),
        (L, 3 * C, C),
        (L, 3 * C),
        (L, C, C),
        (L, C),
        (L, C),
        (L, C),
    ]
    # as fill_in_parameter_sizes has them
    shapes += [(L, 4 * C, C), (L, 4 * C), (L, C, 4 * C), (L, C), (C,), (C,)]
    values = np.frombuffer(data[1024:], "<f4")
    assert len(values) == sum(int(np.prod(shape)) for shape in shapes)
    tensors = []
    for shape in shapes:
        tensors.append(torch.from_numpy(values[: int(np.prod(shape))].reshape(shape).copy()))
        values = values[int(np.prod(shape)) :]
    assert torch.equal(tensors[0][:300], ours["transformer.wte.weight"][:300])
    assert not tensors[0][300:].any()
    for at, name in enumerate(
        ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    ):
        for layer in range(L):
            assert torch.equal(
                tensors[2 + 2 * at][layer], ours[f"transformer.h.{layer}.{name}.weight"]
            )
            assert torch.equal(
                tensors[3 + 2 * at][layer], ours[f"transformer.h.{layer}.{name}.bias"]
            )
    assert torch.equal(tensors[-2], ours["transformer.ln_f.weight"])


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_the_vocabulary_file_is_as_llmc_reads_it(kind: str) -> None:
    tokenizer = tokenizers.gpt2() if kind == "gpt2" else bpe()
    data = llmc.tokenizer_bytes(tokenizer)
    header = np.frombuffer(data[:1024], "<i4")
    assert header[:4].tolist() == [20240328, 2, tokenizer.n_vocab, tokenizer.eot_id]
    at = 1024
    for number in range(tokenizer.n_vocab):
        token = data[at + 1 : at + 1 + data[at]]
        assert token == tokenizer.decode_bytes([number])
        at += 1 + len(token)
    assert at == len(data)


def test_what_llmc_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    for change, reason in [
        ({"gelu": "exact"}, "tanh form of GELU.*; train one with --gelu tanh"),
        ({"tied_head": False}, "no tied_head"),
    ]:
        config = CONFIG.model_copy(update=change)
        with pytest.raises(ConfigError, match=reason):
            llmc.write(tmp_path / "out", config, weights(config), bpe())
    with pytest.raises(ConfigError, match="no end of text"):
        llmc.write(tmp_path / "out", CONFIG, weights(CONFIG), tokenizers.char("abc"))
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotCreateError):
        llmc.write(tmp_path / "out", CONFIG, weights(CONFIG), bpe())
