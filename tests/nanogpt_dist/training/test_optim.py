"""Parameter groups, AdamW's step itself, and another optimizer."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training import optim
from nanogpt_dist.training.groups import lower_rates, parameter_groups
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import make_optimizer
from nanogpt_dist.training.schedule import learning_rate
from tests.nanogpt_dist.small import go, tiny


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = GPT(load("shakespeare-char-cpu", {"bias": True}).architecture())
    decayed, kept = parameter_groups(model, TrainConfig())
    ids = [id(p) for group in (decayed, kept) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert len(set(ids)) == len(ids)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_two_updates_equal_adamw_by_hand() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    config = load(
        "shakespeare-char-cpu", {"n_layer": 1, "n_embd": 16, "n_head": 2, "weight_decay": 0.1}
    )
    model = GPT(config.architecture()).init_weights(1)
    optimizer = make_optimizer(model, config)
    weight = model.transformer.wte.weight
    expected, m, v = weight.detach().double(), 0.0, 0.0
    for step in (1, 2):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        m = config.beta1 * m + (1 - config.beta1) * gradient.double()
        v = config.beta2 * v + (1 - config.beta2) * gradient.double() ** 2
        m_hat, v_hat = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        expected = expected - config.learning_rate * (
            m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * expected
        )
    torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6)


def test_the_bytes_of_a_parameter() -> None:
    """Four of each number: AdamW has two moments, Muon one of the blocks' matrices; an average."""
    settings = {"vocab_size": 64, "n_layer": 2, "n_embd": 16, "n_head": 2, "bias": False}
    adamw, muon = (
        load("shakespeare-char-cpu", {**settings, "optimizer": name}) for name in ("adamw", "muon")
    )
    total = sum(p.numel() for p in GPT(muon.architecture()).parameters())
    matrices = 2 * (3 + 1 + 4 + 4) * 16 * 16
    for config, state in ((adamw, 8.0), (muon, 8 - 4 * matrices / total)):
        averaged = config.model_copy(update={"ema_decay": 0.9})
        assert optim.state_bytes(config) == optim.state_bytes(averaged) == pytest.approx(state)
        assert optim.training_bytes(config) == pytest.approx(8 + state)
        assert optim.training_bytes(averaged) == pytest.approx(12 + state)
        assert optim.checkpoint_bytes(config) == pytest.approx(4 + state)
        assert optim.checkpoint_bytes(averaged) == pytest.approx(8 + state)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "--learning-rate 0.001"),
        ({"head_learning_rate": 0.5}, "--learning-rate 0.001, --head-learning-rate 0.5"),
        ({"optimizer": "muon"}, "--learning-rate 0.001, --muon-learning-rate 0.02"),
    ],
    ids=str,
)
def test_a_run_that_has_diverged_is_told_each_rate_to_lower(
    settings: dict[str, Any], told: str
) -> None:
    rates = {"learning_rate": 1e-3, "muon_learning_rate": 0.02}
    assert lower_rates(TrainConfig(**{**rates, **settings})) == f"go on with less than {told}"


def sgd(
    groups: list[dict[str, Any]],
    config: TrainConfig,
    world: World | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    groups[1]["lr_scale"] = 0.5  # biases and LayerNorms at half the rate
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.beta1)


def sgd_zeros(parameter: Tensor, by_muon: bool) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_another_optimizer_trains_saves_and_resumes_with_no_other_module_knowing(
    strategy: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    momentum = optim.Kind(sgd, sgd_zeros, state_bytes=4, matrix_bytes=4)
    monkeypatch.setattr(optim, "kind_of", lambda config: momentum)
    with connect("cpu", timeout_s=30, group=True) as world:
        given = {"strategy": strategy, "dropout": 0.1, "log_interval": 1, "lr_decay_iters": 8}
        train(tiny(corpus, tmp_path / "whole", **given), world, StopRequest())
        for until in (4, 8):  # in two halves
            config = tiny(corpus, tmp_path / "halves", max_iters=until, **given)
            train(config, world, StopRequest())
    ends = [tmp_path / run / "checkpoints" / storage.step_name(8) for run in ("whole", "halves")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    weights, moments = (
        load_file(ends[0] / f"{kind}.safetensors") for kind in ("model", "optimizer")
    )
    assert set(moments) == {f"{name}.momentum_buffer" for name in weights}
    assert optim.training_bytes(config) == 12
    assert optim.checkpoint_bytes(config) == 8


def test_a_checkpoint_of_another_optimizer_is_refused(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go(tiny(corpus, tmp_path / "run", max_iters=4))
    monkeypatch.setattr(optim, "kind_of", lambda config: optim.Kind(sgd, sgd_zeros, 4, 4))
    with pytest.raises(BadDataError, match=r"exp_avg is .*, the model wants absent"):
        go(tiny(corpus, tmp_path / "run", max_iters=8))


def test_each_group_has_its_own_rate() -> None:
    config = load("shakespeare-char-cpu", {"n_layer": 1, "n_embd": 16, "n_head": 2})
    model = GPT(config.architecture()).init_weights(1)
    optimizer = sgd(parameter_groups(model, config), config)
    assert optim.set_learning_rates(optimizer, 50, config) == learning_rate(50, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [learning_rate(50, config), learning_rate(50, config) / 2]


def test_moments_are_saved_and_loaded_by_the_name_of_their_parameter() -> None:
    """Whatever the order of the optimizer's groups is."""
    config = load("shakespeare-char-cpu", {"n_layer": 2, "n_embd": 16, "n_head": 2, "bias": True})
    model = GPT(config.architecture()).init_weights(1)
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name_state in (optim.named_state, functools.partial(optim.empty_state, config=config)):
        state = name_state(model, optimizer)
        names = {f"{name}.exp_avg" for name, _ in model.named_parameters()}
        assert names == {key for key in state if key.endswith(".exp_avg")}
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                assert state[f"{name}.{key}"] is value
