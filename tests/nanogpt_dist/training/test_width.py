"""Coordinate check: how far a few steps move the activations does not grow with the width.

As in Yang et al. 2022, "Tensor Programs V", appendix D.1: hyperparameters that were found at one
width hold at another only where this is so.
"""

import math

import pytest
import torch
from torch import Tensor

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ONE

WIDTHS = (64, 128, 256, 512)
STEPS = 3
SHAPE = {
    "n_layer": 2,
    "n_head": 2,
    "block_size": 32,
    "vocab_size": 64,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "decay_lr": False,
    "weight_decay": 0.0,
}
MODERN = {
    "init": "fan_in",
    "zero_init": True,
    "tied_head": False,
    "norm": "rmsnorm",
    "qk_norm": True,
    "mlp": "relu2",
    "rotary": True,
    "base_width": 64,
    "learning_rate": 0.003,
    "muon_learning_rate": 0.01,
}
RECIPES: dict[str, dict[str, object]] = {
    "muon": {**MODERN, "optimizer": "muon"},
    "adamw": {**MODERN, "optimizer": "adamw"},
    "gpt2": {"learning_rate": 0.003},
}


def activations(train_step: TrainStep, idx: Tensor) -> dict[str, Tensor]:
    """Of each block, the last norm and the head: (B, T, C), or (B, T, V)."""
    found: dict[str, Tensor] = {}
    model = train_step.model
    modules = {f"h.{i}": block for i, block in enumerate(model.transformer.h)}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: found.update({name: output.detach().float()})
        )
        for name, module in {**modules, "ln_f": model.transformer.ln_f}.items()
    ]
    with torch.no_grad():
        found["logits"] = model.logits(idx)
    for handle in handles:
        handle.remove()
    return found


def moved(config: TrainConfig) -> dict[str, float]:
    """The root mean square of what STEPS steps add to each activation."""
    train_step = TrainStep(config, ONE, Layout("single", 1, 1, batch_size=4), torch.float32)
    rows = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(1))
    inputs, targets = rows[:, :-1].numpy(), rows[:, 1:].numpy()
    before = activations(train_step, rows[:, :-1])
    for step in range(STEPS):
        assert train_step.step(step, [(inputs, targets)]).finite
    after = activations(train_step, rows[:, :-1])
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def growth(recipe: str) -> dict[str, float]:
    """By what power of the width the change of each activation grows: the slope of both logs."""
    changes = [moved(resolve({**SHAPE, **RECIPES[recipe], "n_embd": width})) for width in WIDTHS]
    x = torch.tensor([math.log2(width) for width in WIDTHS])
    found = {}
    for name in changes[0]:
        y = torch.tensor([math.log2(change[name]) for change in changes])
        covariance = ((x - x.mean()) * (y - y.mean())).sum()
        found[name] = (covariance / (x - x.mean()).square().sum()).item()
    return found


@pytest.mark.parametrize("recipe", ["muon", "adamw"])
def test_with_a_base_width_steps_move_activations_as_far_at_every_width(recipe: str) -> None:
    slopes = growth(recipe)
    assert max(slopes.values()) < 0.15, slopes
    assert min(slopes.values()) > -0.6, slopes


def test_with_gpt2s_own_settings_they_move_further_the_wider_the_model() -> None:
    slopes = growth("gpt2")
    assert max(slopes.values()) > 1, slopes
    assert slopes["logits"] > 0.4, slopes
