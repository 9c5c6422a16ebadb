"""The first values: their deviations, by name, and what begins as zeros."""

import hashlib
import math
from typing import Any

import pytest
import torch

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.gpt import GPT

SMALL = ModelConfig(block_size=64, vocab_size=512, n_layer=2, n_head=2, n_embd=64)


def drawn(**settings: Any) -> dict[str, torch.Tensor]:
    config = ModelConfig(**{**SMALL.model_dump(), **settings})
    return dict(GPT(config).init_weights(1).named_parameters())


def checksum(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def test_gpt2s_values_are_what_they_were_before_there_was_a_choice() -> None:
    assert checksum(drawn()) == "4d3c8ea69dd89081"
    assert checksum(drawn(bias=True, tied_head=False)) == "02cd7397ed52bf3c"


@pytest.mark.parametrize("mlp", ["gelu", "swiglu", "relu2"])
def test_fan_in_is_one_over_the_root_of_the_inputs(mlp: str) -> None:
    weights = drawn(init="fan_in", tied_head=False, mlp=mlp)
    F = ModelConfig(n_embd=64, n_head=2, mlp=mlp).mlp_width
    expected = {
        "transformer.wte.weight": 1.0,
        "transformer.wpe.weight": 1.0,
        "lm_head.weight": 1 / 8,
        **{
            f"transformer.h.{i}.{name}.weight": deviation
            for i in range(2)
            for name, deviation in {
                "attn.c_attn": 1 / 8,
                "attn.c_proj": 1 / 8,
                "mlp.c_fc": 0.5 / 8,
                "mlp.c_proj": 1 / math.sqrt(F),
            }.items()
        },
    }
    matrices = {name: weight for name, weight in weights.items() if weight.ndim == 2}
    assert matrices.keys() == expected.keys()
    for name, weight in matrices.items():
        few = 5 / math.sqrt(weight.numel())  # standard errors
        assert abs(float(weight.mean())) < few * expected[name], name
        assert abs(float(weight.std()) / expected[name] - 1) < few, name


def test_a_tied_table_is_drawn_as_the_head_that_it_is() -> None:
    """With rows of N(0, 1) the first logits would be √n_embd large."""
    model = GPT(SMALL.model_copy(update={"init": "fan_in"})).init_weights(1)
    ids = torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0))
    assert 0.5 < float(model.logits(ids).std()) < 2
    assert float(model.transformer.wte.weight.std()) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("init", ["gpt2", "fan_in"])
@pytest.mark.parametrize("tied", [True, False])
def test_zero_init_makes_zeros_of_outputs_and_changes_nothing_else(init: str, tied: bool) -> None:
    common = {"init": init, "tied_head": tied, "bias": True}
    zero, plain = drawn(zero_init=True, **common), drawn(**common)
    assert zero.keys() == plain.keys()
    for name, weight in zero.items():
        if name.endswith(("c_proj.weight", "lm_head.weight")):
            assert not weight.any(), name
        else:
            assert torch.equal(weight, plain[name]), name
    assert ("lm_head.weight" in zero) is not tied


def test_with_zero_outputs_the_first_blocks_are_the_identity() -> None:
    settings = {**SMALL.model_dump(), "zero_init": True, "tied_head": False}
    model = GPT(ModelConfig(**settings)).init_weights(1).eval()
    ids = torch.arange(10)[None]
    x, positions = model.transformer.begin(ids)
    for block in model.transformer.h:
        assert torch.equal(block(x, positions), x)
    _, loss = model(ids, ids)
    assert loss is not None
    assert loss.item() == pytest.approx(math.log(512), rel=1e-6)
