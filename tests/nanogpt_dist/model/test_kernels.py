"""Which kernels a training pass takes, and how many sequences go into one."""

from typing import Any

import pytest
import torch

from nanogpt_dist.config import ModelConfig, resolve
from nanogpt_dist.model import cpu_kernels, head_loss, kernels
from nanogpt_dist.model.attention import attention, cpu_attention
from nanogpt_dist.model.gpt import GPT

BF16, F32 = torch.bfloat16, torch.float32
SMALL = {
    "vocab_size": 61,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 48,
    "batch_size": 4,
    "device": "cpu",
}


def test_how_many_sequences_are_joined() -> None:
    config = resolve({**SMALL, "block_size": 256, "batch_size": 4})
    assert kernels.joined_batch_size(config, 2) == kernels.ENOUGH_TOKENS // 256
    assert (
        kernels.joined_batch_size(config.model_copy(update={"batch_size": 64}), 2) == 64
    )  # never fewer than asked for
    huge = config.model_copy(update={"n_layer": 10_000, "n_embd": 10_000})
    assert kernels.joined_batch_size(huge, 2) == 4


@pytest.mark.parametrize(
    ("device", "dtype", "changes", "expected"),
    [
        ("cpu", BF16, {}, True),
        ("cpu", F32, {}, False),
        ("cuda", BF16, {}, False),
        ("cpu", BF16, {"cpu_fast": False}, False),
        ("cpu", BF16, {"compile": True}, False),
    ],
)
def test_where_it_is_chosen(
    device: str,
    dtype: torch.dtype,
    changes: dict[str, bool],
    expected: bool,
) -> None:
    assert (
        kernels.uses_cpu_kernels(resolve({**SMALL, **changes}), torch.device(device), dtype)
        is expected
    )


def test_only_causal_attention_over_plain_heads_has_a_kernel_for_cpus() -> None:
    options: dict[str, Any]
    for options, expected in (
        ({}, cpu_attention),
        ({"rotary": True, "qk_norm": True}, cpu_attention),
        ({"n_kv_head": 1}, attention),
        ({"intra_document": True}, attention),
    ):
        config = resolve({**SMALL, **options})
        chosen = kernels.training_kernels(config, torch.device("cpu"), BF16)
        assert chosen.attention is expected
        assert chosen.head_loss is cpu_kernels.linear_cross_entropy


@pytest.mark.parametrize(
    ("device", "dtype", "changes", "expected"),
    [
        ("cpu", F32, {}, head_loss.whole),
        ("cpu", BF16, {"compile": True}, head_loss.whole),
        ("cpu", BF16, {"chunked_loss": True}, head_loss.chunked),
        ("mps", F32, {}, head_loss.whole),
        ("cuda", BF16, {}, head_loss.by_size),
        ("cuda", BF16, {"chunked_loss": True}, head_loss.chunked),
        ("cuda", BF16, {"chunked_loss": False}, head_loss.whole),
    ],
)
def test_training_always_has_a_loss_that_keeps_its_logits(
    device: str,
    dtype: torch.dtype,
    changes: dict[str, bool],
    expected: object,
) -> None:
    config = resolve({**SMALL, **changes})
    chosen = kernels.training_kernels(config, torch.device(device), dtype)
    assert chosen.head_loss is expected


def test_a_model_computes_with_the_kernels_it_is_given() -> None:
    calls = []

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append("attention")
        return attention(*inputs)

    def loss_of(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append("loss")
        return cpu_kernels.linear_cross_entropy(*inputs)

    config = ModelConfig(vocab_size=61, n_layer=2, n_head=2, n_embd=32, block_size=48)
    model = GPT(config, kernels=kernels.Kernels(attend, loss_of)).init_weights(0)
    ids = torch.arange(48)[None]
    logits, loss = model(ids, ids)
    assert logits is None
    assert loss is not None
    assert calls == ["attention", "attention", "loss"]
