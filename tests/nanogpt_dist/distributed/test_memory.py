"""The bytes of a training step by arithmetic, against what is measured on shapes alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.memory import usage
from nanogpt_dist.distributed.pass_memory import (
    Pass,
    activation_bytes,
    block_bytes,
    count_parameters,
)
from nanogpt_dist.inspect import architecture
from nanogpt_dist.load_config import load, with_vocabulary
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.training.optim import state_bytes
from tests.nanogpt_dist.distributed import traced

BF16, F32 = torch.bfloat16, torch.float32
MODES = ("none", "selective", "full")
SMALL = {"vocab_size": 50304, "n_layer": 4, "n_head": 12, "n_embd": 768, "block_size": 1024}
CHARACTERS = {"vocab_size": 64, "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
WIDE = {"vocab_size": 1024, "n_layer": 4, "n_head": 25, "n_embd": 1600, "block_size": 512}
OPTIONS: list[dict[str, Any]] = [
    {"bias": True, "gelu": "tanh"},
    {"mlp": "swiglu"},
    {"mlp": "relu2"},
    {"n_kv_head": 3},
    {"rotary": True},
    {"embedding_norm": True},
    {"norm_weights": False},
    {"residual_scalars": True},
    {"logit_softcap": 15.0},
    {"smear": True},
    {"bigram_rows": 100_000},
    {"value_embeddings": True, "n_kv_head": 3},
    {"norm": "rmsnorm"},
    {"qk_norm": True},
    {"tied_head": False},
]
COMPILED_OPTIONS: list[dict[str, Any]] = [
    *OPTIONS[:-1],
    {"dropout": 0.1},
    {"rotary": True, "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "n_kv_head": 3},
]


def one_pass(mode: str, dtype: torch.dtype, batch_size: int, **changes: Any) -> Pass:
    given = {
        "whole": True,
        "buckets": False,
        "shard": 1,
        "micro_batches": 1,
        "compiled": False,
        "state_bytes": 8,
        "cuda": False,
    }
    return Pass(
        **{**given, **changes},
        activation_checkpointing=mode,
        dtype=dtype,
        batch_size=batch_size,
    )


def config_of(*settings: dict[str, Any]) -> TrainConfig:
    return resolve({name: value for each in settings for name, value in each.items()})


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_the_models(name: str) -> None:
    config = with_vocabulary(load(name))
    assert count_parameters(config).total == architecture.count_parameters(config).total


@pytest.mark.parametrize("options", COMPILED_OPTIONS, ids=str)
def test_parameters_of_the_options_are_the_models(options: dict[str, Any]) -> None:
    config = config_of(SMALL, options)
    counted = architecture.count_parameters(config)
    found = count_parameters(config)
    assert found.total == counted.total
    assert found.total - found.root == counted.blocks


OPTION_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bias": st.booleans(),
    "rotary": st.booleans(),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "norm_weights": st.booleans(),
    "embedding_norm": st.booleans(),
    "residual_scalars": st.booleans(),
    "smear": st.booleans(),
    "bigram_rows": st.sampled_from([None, 1, 50]),
    "value_embeddings": st.booleans(),
    "mlp": st.sampled_from(["gelu", "swiglu", "relu2"]),
    "qk_norm": st.booleans(),
    "n_kv_head": st.sampled_from([None, 1, 2]),
    "tied_head": st.booleans(),
    "n_layer": st.integers(1, 5),
}


@given(st.fixed_dictionaries(OPTION_VALUES))
@settings(max_examples=60, deadline=None)
def test_parameters_of_any_options_are_the_models(options: dict[str, Any]) -> None:
    shape = {"vocab_size": 37, "n_head": 4, "n_embd": 24, "block_size": 9}
    config = config_of(shape, options)
    model, found = architecture.skeleton(config), count_parameters(config)
    assert found.total == model.num_params()
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.transformer.h]
    assert found.block == max(blocks)
    assert found.root == model.num_params() - sum(blocks)


@pytest.mark.parametrize("shape", [SMALL, CHARACTERS, WIDE], ids=["small", "characters", "wide"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_peak_of_an_eager_step_is_the_measured_one(
    shape: dict[str, Any],
    dtype: torch.dtype,
    mode: str,
) -> None:
    config = config_of(shape)
    for passes in (1, 2):
        measured = traced.eager_peak(config.architecture(), mode, dtype, 4, passes)
        expected = usage(config, one_pass(mode, dtype, 4, micro_batches=passes), ranks=1)
        assert expected.peak == pytest.approx(measured, rel=0.03), (passes, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_peak_of_an_eager_step_with_options_is_the_measured_one(
    options: dict[str, Any],
) -> None:
    config = config_of(SMALL, options)
    for mode in MODES:
        measured = traced.eager_peak(config.architecture(), mode, BF16, 4, 1)
        expected = usage(config, one_pass(mode, BF16, 4), ranks=1)
        assert expected.peak == pytest.approx(measured, rel=0.02), mode


def check_compiled_blocks(config: TrainConfig, mode: str) -> None:
    """A block's formula beside what a compiled pass keeps: block by block, and the whole model's.

    Of the model, what a third block adds to two.
    """
    tokens, model = 4 * config.block_size, config.architecture()
    cast = one_pass(mode, BF16, 4, compiled=True, whole=False)
    measured = traced.compiled_block(model, mode, BF16, 4)
    assert measured == pytest.approx(tokens * block_bytes(config, cast), rel=0.02)

    two, three = (config.model_copy(update={"n_layer": layers}) for layers in (2, 3))
    added = traced.compiled_model(three.architecture(), mode, BF16, 4)
    added -= traced.compiled_model(two.architecture(), mode, BF16, 4)
    whole = one_pass(mode, BF16, 4, compiled=True)
    expected = activation_bytes(three, whole) - activation_bytes(two, whole)
    assert added == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_what_compiled_blocks_keep_is_the_measured_one(mode: str) -> None:
    check_compiled_blocks(config_of(SMALL), mode)


def test_muon_keeps_less_and_takes_some_matrices_at_a_time() -> None:
    """Its step is the peak where a pass is small; its buffers do not grow with the model."""
    peaks = {}
    for name in ("adamw", "muon"):
        for layers in (24, 48):
            shape = {**SMALL, "n_layer": layers, "vocab_size": 64, "block_size": 16}
            config = config_of(shape, {"optimizer": name})
            how = one_pass("none", BF16, 1, state_bytes=state_bytes(config))
            found = usage(config, how, ranks=1)
            peaks[name, layers] = found.peak
            matrices = layers * count_parameters(config).matrices
            total = count_parameters(config).total
            expected = 8 * total - (4 * matrices if name == "muon" else 0)
            assert found.moments == pytest.approx(expected, abs=1)
    added = 4 * 24 * count_parameters(config_of(SMALL)).matrices
    grown = {name: peaks[name, 48] - peaks[name, 24] for name in ("adamw", "muon")}
    assert grown["adamw"] - grown["muon"] == pytest.approx(added, rel=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("options", COMPILED_OPTIONS, ids=str)
def test_what_compiled_blocks_with_options_keep_is_the_measured_one(
    options: dict[str, Any],
) -> None:
    for mode in MODES:
        check_compiled_blocks(config_of(SMALL, options), mode)


@pytest.mark.parametrize(
    ("shape", "mode", "dtype"),
    [
        (SMALL, "none", BF16),
        pytest.param(SMALL, "selective", BF16, marks=pytest.mark.thorough),
        pytest.param(SMALL, "full", BF16, marks=pytest.mark.thorough),
        pytest.param(SMALL, "none", F32, marks=pytest.mark.thorough),
        pytest.param(WIDE, "none", BF16, marks=pytest.mark.thorough),
    ],
)
def test_what_a_compiled_model_keeps_is_the_measured_one(
    shape: dict[str, Any],
    mode: str,
    dtype: torch.dtype,
) -> None:
    config = config_of(shape)
    assert config.vocab_size is not None
    how = one_pass(mode, dtype, 4, compiled=True)
    logits = 4 * config.block_size * config.vocab_size * dtype.itemsize
    measured = traced.compiled_model(config.architecture(), mode, dtype, 4)
    assert measured == pytest.approx(activation_bytes(config, how) + logits, rel=0.02)


def test_gpt2s_figures_are_those_that_the_docstring_says() -> None:
    config = load("gpt2-124m")
    C, lse = config.n_embd, 4 * config.n_head
    for mode, autocast, cast in (("none", 36, 32), ("selective", 22, 20)):
        for whole, factor in ((True, autocast), (False, cast)):
            how = one_pass(mode, BF16, 1, compiled=True, whole=whole)
            assert block_bytes(config, how) == factor * C + lse


def test_what_each_strategy_holds() -> None:
    config = load("gpt2-350m")
    P = count_parameters(config).total
    for micro_batches, gradients in ((1, 0), (2, 4 * P)):
        single = usage(config, one_pass("none", BF16, 12, micro_batches=micro_batches), 1)
        assert (single.weights, single.moments, single.gradients) == (4 * P, 8 * P, gradients)
    ddp = usage(config, one_pass("none", BF16, 12, buckets=True), 8)
    assert ddp.states == 16 * P
    sharded = one_pass("none", BF16, 12, whole=False, shard=8, micro_batches=2)
    fsdp = usage(config, sharded, 8)
    assert fsdp.weights == pytest.approx(4 * P / 8, abs=4)
    assert fsdp.gradients == 4 * P  # whole, until the last micro-batch
    assert 0 < fsdp.gathered < 2 * P
    offloaded = config.model_copy(update={"cpu_offload": True})
    on_gpu = one_pass("none", BF16, 12, whole=False, shard=8, cuda=True)
    assert usage(offloaded, on_gpu, 8).weights == usage(offloaded, on_gpu, 8).moments == 0
    alone = one_pass("full", BF16, 1, whole=False, cuda=True)
    moved, kept = (usage(each, alone, 1).temporary for each in (offloaded, config))
    assert moved < 4 * P < kept, "each share of the gradients is on the CPU at once"
