"""FLOPs by arithmetic beside torch's own counter, which counts the products that are made."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.estimate.flops import (
    forward_flops,
    model_flops_per_token,
    recomputed_flops,
    sequences_of,
    training_flops,
)
from nanogpt_dist.inspect.architecture import component_of, count_parameters, skeleton
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.load_config import with_vocabulary
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.presets import OPENAI_SIZES, PRESETS

SMALL = {"vocab_size": 96, "n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "bias": {"bias": True, "gelu": "tanh"},
    "rotary": {"rotary": True},
    "rmsnorm": {"norm": "rmsnorm", "norm_weights": False, "embedding_norm": True},
    "swiglu": {"mlp": "swiglu"},
    "relu2": {"mlp": "relu2"},
    "qk_norm": {"qk_norm": True},
    "grouped": {"n_kv_head": 2},
    "one kv head": {"n_kv_head": 1},
    "untied": {"tied_head": False},
    "softcap": {"logit_softcap": 15.0},
    "scalars": {"residual_scalars": True},
    "values": {"value_embeddings": True},
    "bigram": {"bigram_rows": 50},
    "smear": {"smear": True},
    "window": {"sliding_window": 8},
    "window, pattern": {"sliding_window": 5, "window_pattern": "SL"},
    "intra_document": {"intra_document": True, "eot_id": 0},
    "dropout": {"dropout": 0.1},
    "all": {
        **{"rotary": True, "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "n_kv_head": 2},
        **{"tied_head": False, "logit_softcap": 15.0, "residual_scalars": True, "smear": True},
        **{"value_embeddings": True, "bigram_rows": 50, "sliding_window": 8},
    },
}


def config_of(name: str) -> TrainConfig:
    """A preset's, with the architecture of the weights that it begins with."""
    values = PRESETS[name]
    return with_vocabulary(resolve({**values, **OPENAI_SIZES.get(values.get("init_from", ""), {})}))


def counted(config: TrainConfig, mode: str = "none", rows: int = 2) -> dict[str, int]:
    """What torch's counter finds in a forward and backward pass: of all, and by component."""
    with torch.device("meta"):
        wrap = None if mode == "none" else lambda forward: checkpointed(forward, mode)
        model = skeleton(config) if wrap is None else GPT(config, wrap_block=wrap)
    ids = torch.zeros(rows, config.block_size, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False, depth=None) as counter:
        model(ids, ids)[1].backward()
    found = {"all": counter.get_total_flops()}
    for module, by_operator in counter.get_flop_counts().items():
        name = component_of(module.removeprefix("GPT."))
        found[name] = found.get(name, 0) + sum(by_operator.values())
    return found


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_has_the_flops_that_torch_counts(options: str) -> None:
    config = TrainConfig(**{**SMALL, **OPTIONS[options]})
    ours, theirs = forward_flops(config, attention="dense"), counted(config)
    assert 3 * 2 * sum(ours.values()) == theirs["all"]
    for name in ("h.attn.c_attn", "h.attn.c_proj", "h.mlp.c_fc", "h.mlp.c_proj"):
        assert 3 * 2 * ours[name] == theirs[name], name


FROM_SCRATCH = [name for name in PRESETS if not name.startswith("eval-")]


@pytest.mark.parametrize("preset", FROM_SCRATCH)
def test_every_presets_blocks_have_the_flops_that_torch_counts(preset: str) -> None:
    config = config_of(preset)
    config = config.model_copy(update={"n_layer": min(config.n_layer, 5)})  # short, long, the last
    ours = forward_flops(config, attention="dense")
    assert 3 * sum(ours.values()) == counted(config, rows=1)["all"]


@pytest.mark.thorough
@pytest.mark.parametrize("preset", FROM_SCRATCH)
def test_every_preset_has_the_flops_that_torch_counts(preset: str) -> None:
    config = config_of(preset)
    ours = forward_flops(config, attention="dense")
    assert 3 * sum(ours.values()) == counted(config, rows=1)["all"]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_flops_of_an_mfu_are_the_models_own(options: str) -> None:
    config = TrainConfig(**{**SMALL, **OPTIONS[options]})
    model = skeleton(config)
    for length in (None, 7):
        assert model_flops_per_token(config, length) == model.flops_per_token(length)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_flops_of_an_mfu_are_those_of_products_and_six_for_each_other_weight(
    preset: str,
) -> None:
    config = config_of(preset)
    model = skeleton(config)
    assert model_flops_per_token(config) == model.flops_per_token()
    assert sum(count_by_arithmetic(config).values()) == model.num_params()
    assert count_parameters(config).total == model.num_params()
    products = 3 * sum(forward_flops(config).values()) / config.block_size
    assert products <= model.flops_per_token() < 1.001 * products + 6 * 1000


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("options", ["plain", "all"])
def test_full_checkpointing_computes_again_what_torch_counts(options: str, dropout: float) -> None:
    config = TrainConfig(**{**SMALL, **OPTIONS[options], "dropout": dropout})
    once = 3 * sum(forward_flops(config, attention="dense").values())
    again = recomputed_flops(config, "full", attention="dense")
    assert again > 0
    assert counted(config, "full")["all"] == 2 * (once + again)


def test_selective_checkpointing_computes_no_product_of_weights_again() -> None:
    config = TrainConfig(**SMALL)
    assert recomputed_flops(config, "selective") == 0
    forward = forward_flops(config, attention="dense")
    # On shapes alone torch writes attention out, in products that are not among those kept; its
    # fused kernels are.
    assert counted(config, "selective")["all"] == 2 * (
        3 * sum(forward.values()) + forward["h.attn.sdpa"]
    )


@pytest.mark.parametrize("window", [None, 1, 5, 8, 24])
def test_causal_attention_counts_the_pairs_that_the_mask_lets_through(window: int | None) -> None:
    from nanogpt_dist.model.positions import causal_mask

    config = TrainConfig(**{**SMALL, "sliding_window": window})
    T = config.block_size
    pairs = sum(
        int(causal_mask(T, config.window_of(layer), torch.empty(0)).sum()) for layer in range(3)
    )
    assert forward_flops(config, attention="causal")["h.attn.sdpa"] == 4 * 32 * pairs


def test_a_training_is_the_sum_of_its_steps_with_ramps_by_their_lengths() -> None:
    ramps = {"batch_ramp": "0:4,3:8", "context_ramp": "0:12,5:24", "max_iters": 10}
    config = TrainConfig(**{**SMALL, **ramps, "warmup_iters": 1})
    assert sequences_of(config) == {12: 3 * 4 + 2 * 8, 24: 5 * 8}
    model, hardware = training_flops(config)
    by_steps = sum(
        config.ramp.at(step).tokens * model_flops_per_token(config, config.ramp.at(step).length)
        for step in range(10)
    )
    assert model == by_steps
    assert 0 < hardware < model
    assert training_flops(config, "full")[1] > hardware
    assert training_flops(config, "full")[0] == model
