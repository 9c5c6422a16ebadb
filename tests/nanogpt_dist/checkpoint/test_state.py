"""A checkpoint of several ranks is whole or none; what is loaded is what was saved."""

import json
import math
from pathlib import Path

import pytest
import torch

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import (
    Contents,
    TrainState,
    contents,
    load_averages,
    load_model,
    load_moments,
    load_state,
    load_weights,
    save,
    weight_files,
)
from nanogpt_dist.checkpoint.tensors import index, whole_parts, write
from nanogpt_dist.config import resolve
from nanogpt_dist.errors import BadDataError, ConfigError, MissingInputError
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import byte
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE


def test_a_checkpoint_has_the_files_of_all_ranks_or_is_none(tmp_path: Path) -> None:
    """Rank 0 seals it when the slowest has written its part; where one fails, all hear of it."""
    in_ranks("sealing", 2, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    [saved] = storage.list_steps(tmp_path / "checkpoints")
    listed = {entry["name"] for entry in storage.read_manifest(saved)["files"]}
    assert {f"model-{part}-of-00002.safetensors" for part in ("00001", "00002")} <= listed
    assert storage.verify(saved) == []


@pytest.mark.parametrize("averaged", [False, True])
def test_averaged_weights_have_a_file_where_there_are_some(averaged: bool, tmp_path: Path) -> None:
    parts = whole_parts({"a": torch.ones(2)})
    mine = Contents(TrainState(step=1), parts, parts, parts if averaged else {})
    saved = save(ONE, tmp_path, mine, resolve({}), byte(), {})
    expected = {"model", "optimizer", "ema"} if averaged else {"model", "optimizer"}
    assert {path.stem for path in saved.glob("*.safetensors")} == expected


def test_a_tied_head_is_tied_when_loaded(trained: Path) -> None:
    [newest, *_] = storage.list_steps(trained / "checkpoints")
    model, config = load_model(newest, torch.device("cpu"))
    assert config.tie_embeddings
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.training


def test_counting_a_step_and_leaving_one_out() -> None:
    assert (TrainState().step, TrainState().tokens, TrainState().skipped) == (0, 0, 0)
    state = TrainState(step=4, tokens=100, val_loss=2.0, left_out=((6, 7), (10, 10)))
    state.count(30)
    assert (state.step, state.tokens, state.val_loss) == (5, 130, None)
    state.val_loss = 2.0
    state.leave_out()
    assert (state.step, state.tokens, state.val_loss) == (6, 130, None)
    out = [
        step for step in range(12) if TrainState(step=step, left_out=state.left_out).leaves_out_next
    ]
    assert out == [5, 6, 9]


WHOLE: dict[str, object] = {
    **{"step": 3, "tokens": 9, "skipped": 0, "val_loss": None, "best_val_loss": 2.5},
    **{"best_step": None, "losses": [1.5, 2], "grad_norms": [0.5], "left_out": [[1, 2]]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": True},
        {"step": 3.0},
        {"tokens": -1},
        {"tokens": "9"},
        {"skipped": None},
        {"skipped": -1},
        {"val_loss": "2"},
        {"val_loss": True},
        {"best_val_loss": [2.5]},
        {"best_step": -4},
        {"best_step": 1.5},
        {"losses": [1.5, "2"]},
        {"losses": 1.5},
        {"grad_norms": [None]},
        {"left_out": [[0, 2]]},
        {"left_out": [[1, 2], [3, "4"]]},
        {"left_out": [[1, 2, 3]]},
        {"left_out": [[True, 2]]},
        {"left_out": [[1, 2], [0, 0]]},
        {"left_out": [[1, 10**400]]},
        {"step": 2**63},
        {"tokens": 10**400},
        {"skipped": 10**400},
        {"best_step": 10**300},
        {"best_step": False},
        {"val_loss": 10**400},
        {"val_loss": math.nan},
        {"val_loss": False},
        {"best_val_loss": -math.inf},
        {"losses": [math.nan]},
        {"losses": [10**309]},
        {"grad_norms": [math.inf]},
        {"grad_norms": [0.0]},
        {"grad_norms": [-1.0]},
    ],
)
def test_a_state_that_no_run_can_have_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(BadDataError, match=r"state\.json is not as this program writes it"):
        load_state(tmp_path)


def test_a_state_comes_back_with_the_facts_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({**WHOLE, "torch": "2", "best_step": 0}))
    state, facts = load_state(tmp_path)
    assert state == TrainState(
        *(3, 9, 0, None, 2.5, 0),
        losses=(1.5, 2),
        grad_norms=(0.5,),
        left_out=((1, 2),),
    )
    assert facts == {"torch": "2"}
    (tmp_path / "state.json").write_text(json.dumps({"step": 0}))  # as of an older version
    assert load_state(tmp_path) == (TrainState(), {})
    (tmp_path / "state.json").write_text(json.dumps({"tokens": 0}))
    with pytest.raises(BadDataError):
        load_state(tmp_path)


def small(**changes: object) -> GPT:
    values = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 8,
        "block_size": 16,
        "vocab_size": 300,
        **changes,
    }
    return GPT(resolve(values).architecture())


def saved(folder: Path, **changes: object) -> GPT:
    """A checkpoint of a small model with averages that are twice its weights."""
    model = small(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    moments = {"x.exp_avg": torch.ones(2), "x.step": torch.tensor(3.0)}
    averages = {name: 2 * value for name, value in named(model).items()}
    mine = contents(TrainState(step=3), model, moments, True, averages=averages)
    for kind, parts in (
        ("model", mine.weights),
        ("optimizer", mine.moments),
        ("ema", mine.averages),
    ):
        write(folder / f"{kind}.safetensors", parts)
    return model


def named(model: GPT) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_moments_and_averages_come_back(tied: bool, tmp_path: Path) -> None:
    model = saved(tmp_path, tied_head=tied)
    other = small(tied_head=tied)
    load_weights(tmp_path, other)
    assert equal(named(model), named(other))
    assert ("lm_head.weight" in index(weight_files(tmp_path, "model"))) is not tied
    moments = {"x.exp_avg": torch.zeros(2), "x.step": torch.tensor(0.0)}
    load_moments(tmp_path, lambda: moments)
    assert (moments["x.exp_avg"].tolist(), moments["x.step"].item()) == ([1, 1], 3)
    averages = {name: torch.zeros_like(value) for name, value in named(model).items()}
    load_averages(tmp_path, lambda: averages)
    assert equal(averages, {name: 2 * value for name, value in named(model).items()})


def test_another_architecture_is_refused_with_the_first_tensor_that_differs(
    tmp_path: Path,
) -> None:
    saved(tmp_path)
    told = r"is of another architecture: transformer\.\S+ is \S.*, the model wants "
    for changes in ({"n_layer": 1}, {"n_layer": 3}, {"n_embd": 16}, {"rotary": True}):
        with pytest.raises(BadDataError, match=told):
            load_weights(tmp_path, small(**changes))
    for load in (load_moments, load_averages):
        with pytest.raises(BadDataError, match="is absent, the model wants"):
            load(tmp_path, lambda: {"other": torch.zeros(2)})


def test_a_checkpoint_without_moments_and_averages_is_one(tmp_path: Path) -> None:
    saved(tmp_path)
    for kind in ("optimizer", "ema"):
        (tmp_path / f"{kind}.safetensors").unlink()
    load_moments(tmp_path, pytest.fail)
    load_averages(tmp_path, pytest.fail)
    with pytest.raises(MissingInputError, match="no averaged weights: leave --weights ema out"):
        weight_files(tmp_path, "ema")
    (tmp_path / "model.safetensors").unlink()
    assert weight_files(tmp_path, "model") == []


def test_what_is_not_finite_is_refused_wherever_it_is() -> None:
    def made(name: str, value: float) -> Contents:
        kinds = {kind: {"a": torch.ones(2), "b": torch.ones(2)} for kind in ("w", "m", "e")}
        kinds[name]["b"][1] = value
        return Contents(TrainState(step=7), *(whole_parts(kind) for kind in kinds.values()))

    for name in ("w", "m", "e"):
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ConfigError, match="not finite at step 7, nothing is saved"):
                made(name, value).refuse_not_finite()
        made(name, 1.0).refuse_not_finite()
    large = Contents(TrainState(), whole_parts({"a": torch.full((4,), 3e38)}), {}, {})
    large.refuse_not_finite()  # although their sum is not
    assert (large.nbytes, Contents(TrainState(), {}, {}).nbytes) == (16, 0)
    assert made("w", 1.0).nbytes == 3 * 2 * 8
