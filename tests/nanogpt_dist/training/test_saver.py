"""What a run saves, keeps and calls the best, and what it never saves."""

import json
import math
import os
import shutil
import stat
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import TrainState, load_state
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import ConfigError, StorageError
from nanogpt_dist.evaluation.loss import Evaluation
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from nanogpt_dist.training import optim
from nanogpt_dist.training import saver as saver_module
from nanogpt_dist.training.saver import Saver, Writing, due
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ONE, events_of, go, records, tiny


def test_only_improvements_are_saved_on_demand_and_the_newest_and_the_best_are_kept(
    corpus: Path,
    tmp_path: Path,
) -> None:
    config = tiny(
        corpus, tmp_path / "run", max_iters=40, eval_interval=4, always_save_checkpoint=False
    )
    go(config)
    state, _ = load_state(storage.list_steps(tmp_path / "run" / "checkpoints")[0])
    evaluations = {
        record["step"]: record["val_loss"]
        for record in records(tmp_path / "run")
        if "val_loss" in record
    }
    kept = {
        storage.step_of(path.name) for path in storage.list_steps(tmp_path / "run" / "checkpoints")
    }
    assert state.best_val_loss == min(evaluations.values())
    assert evaluations[state.best_step] == state.best_val_loss
    assert {state.best_step, 40} <= kept
    assert len(kept) <= 3


def test_the_best_is_kept_however_old_it_is(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = TrainStep.evaluate
    made_up = iter([3.0, 2.0, *([2.5] * 8), 2.3, 2.4])  # the best after 4 steps

    def better_at_first(*given: Any) -> Evaluation:
        return replace(evaluate(*given), val_loss=next(made_up))

    monkeypatch.setattr(TrainStep, "evaluate", better_at_first)
    go(tiny(corpus, tmp_path, max_iters=20, eval_interval=2))
    steps = [storage.step_of(path.name) for path in storage.list_steps(tmp_path / "checkpoints")]
    assert steps == [20, 18, 4]
    best = find_checkpoint(str(tmp_path), best=True)
    assert best.name == "step-00000004"
    shutil.rmtree(best)  # from then on it is of those that are left
    result = go(tiny(corpus, tmp_path, max_iters=24, eval_interval=2))
    assert result.best_val_loss == 2.3
    assert find_checkpoint(str(tmp_path), best=True).name == "step-00000022"


def test_a_checkpoint_that_was_not_evaluated_has_no_val_loss(corpus: Path, tmp_path: Path) -> None:
    """Neither one between evaluations, nor that of a stop, nor those after a resumption."""

    class AtNine(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked > 9

    config = tiny(
        corpus, tmp_path / "run", max_iters=14, eval_interval=4, save_interval=3, keep_checkpoints=9
    )
    assert go(config, stop=AtNine()).val_loss is None
    go(config)
    evaluated = {
        record["step"]: record["val_loss"]
        for record in records(tmp_path / "run")
        if "val_loss" in record
    }
    steps = storage.list_steps(tmp_path / "run" / "checkpoints")
    told = {storage.step_of(path.name): load_state(path)[0].val_loss for path in steps}
    assert told == {step: evaluated.get(step) for step in (3, 6, 9, 12, 14)}


def test_the_best_is_the_best_of_what_was_saved(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, tmp_path / "run", max_iters=30, eval_interval=2, save_interval=6)
    result = go(config)
    evaluated = {
        record["step"]: record["val_loss"]
        for record in records(tmp_path / "run")
        if "val_loss" in record
    }
    assert result.best_val_loss == min(loss for step, loss in evaluated.items() if step % 6 == 0)
    best = find_checkpoint(str(tmp_path / "run"), best=True)
    assert evaluated[storage.step_of(best.name)] == result.best_val_loss


def test_a_gradient_that_is_not_finite_changes_nothing_and_three_in_a_row_end_the_run(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned: set[int] = {3}
    update = TrainStep.step

    def poison(self: TrainStep, step: int, *rest: object) -> object:
        if step not in poisoned:
            return update(self, step, *rest)  # type: ignore[arg-type]
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        handle = self.model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
        result = update(self, step, *rest)  # type: ignore[arg-type]
        handle.remove()
        assert all(torch.equal(p, before[name]) for name, p in self.model.named_parameters())
        return result

    monkeypatch.setattr(TrainStep, "step", poison)
    assert go(tiny(corpus, tmp_path / "one")).step == 8
    state, _ = load_state(tmp_path / "one" / "checkpoints" / storage.step_name(8))
    assert state.skipped == 1
    poisoned |= {4, 5, 6}
    with pytest.raises(ConfigError, match="no finite gradient in 3 steps up to step 6"):
        go(tiny(corpus, tmp_path / "three", save_interval=1))
    steps = storage.list_steps(tmp_path / "three" / "checkpoints")
    assert [storage.step_of(path.name) for path in steps] == [3, 2], (
        "what was left out pushes no good checkpoint out"
    )
    poisoned.clear()
    poisoned |= {0, 1}  # which is not three, at the start neither
    assert go(tiny(corpus, tmp_path / "two")).step == 8


def test_weights_that_are_not_finite_are_never_committed(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, tmp_path / "run", max_iters=4, eval_interval=2, decay_lr=False)
    go(config)
    with pytest.raises(ConfigError, match="weights are not finite at step 5, nothing is saved"):
        go(config.model_copy(update={"max_iters": 9, "save_interval": 1, "learning_rate": 1e300}))
    assert storage.list_steps(tmp_path / "run" / "checkpoints")[0].name == storage.step_name(4)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["verdict"], status["code"], status["checkpoint"]) == (
        "failed",
        78,
        storage.step_name(4),
    )
    assert go(config.model_copy(update={"max_iters": 6})).step == 6


def test_a_checkpoint_is_saved_even_where_it_cannot_be_noted(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latest = tmp_path / "run" / "checkpoints" / storage.LATEST
    latest.mkdir(parents=True)  # in the way
    assert go(tiny(corpus, tmp_path / "run")).step == 8
    assert "step-00000004 is saved, but" in capsys.readouterr().err


def test_a_size_that_cannot_be_read_is_null_in_the_event(tmp_path: Path) -> None:
    saver: Any = SimpleNamespace(run=SimpleNamespace(path=tmp_path))
    Saver._note_save(saver, 4, tmp_path / "gone", 0.12345)
    [event] = events_of(tmp_path)
    assert (event["event"], event["step"], event["bytes"]) == ("save", 4, None)
    assert event["seconds"] == 0.123


def test_what_is_being_written_counts_among_the_best() -> None:
    """A commit beside the training may be of a lower val loss than all that are noted."""
    saver: Any = SimpleNamespace(writing=SimpleNamespace(state=TrainState(best_val_loss=2.0)))
    state = TrainState(val_loss=2.5, best_val_loss=3.0)
    assert not Saver.improves(saver, state)
    assert Saver.improves(saver, replace(state, val_loss=1.5))
    saver.writing = None
    assert Saver.improves(saver, state)
    assert Saver.improves(saver, replace(state, best_val_loss=None))
    assert not Saver.improves(saver, replace(state, val_loss=3.0))
    assert not Saver.improves(saver, replace(state, val_loss=None))


def test_what_keep_every_promised_is_kept_also_when_resumed_without_it(
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path, max_iters=8, eval_interval=2, keep_every=4))
    go(tiny(corpus, tmp_path, max_iters=20, eval_interval=2))
    checkpoints = storage.list_steps(tmp_path / "checkpoints")
    best = load_state(checkpoints[0])[0].best_step
    kept = {storage.step_of(path.name) for path in checkpoints}
    assert kept == {20, 18, 8, 4, best}  # the newest two, the promised, and the best


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_allows(
    mask: int,
    corpus: Path,
    tmp_path: Path,
) -> None:
    before = os.umask(mask)
    try:
        last = go(tiny(corpus, tmp_path, max_iters=1, warmup_iters=0)).checkpoint
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(last).iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_a_val_loss_that_is_none_ends_the_run_and_is_not_saved(
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path, max_iters=4))
    with pytest.raises(
        ConfigError, match="nothing is saved; the last good checkpoint is step-00000004"
    ):
        go(tiny(corpus, tmp_path, max_iters=6, learning_rate=1e30, min_lr=1e30))
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000004"]


def test_a_save_that_fails_costs_no_checkpoint(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"eval_interval": 2, "keep_checkpoints": 3}
    go(tiny(corpus, tmp_path, max_iters=8, **settings))
    before = storage.list_steps(tmp_path / "checkpoints")
    assert len(before) >= 3

    def full(*_: object) -> Path:
        raise StorageError("disk full: made up")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StorageError, match="made up"):
        go(tiny(corpus, tmp_path, max_iters=12, **settings))
    assert storage.list_steps(tmp_path / "checkpoints") == before


EACH: dict[str, object] = {"always_save_checkpoint": True, "save_interval": None}
BEST: dict[str, object] = {"always_save_checkpoint": False, "save_interval": None}
THIRD: dict[str, object] = {"always_save_checkpoint": True, "save_interval": 3}
WSD: dict[str, object] = {"schedule": "wsd", "max_iters": 10, "decay_fraction": 0.4}


@pytest.mark.parametrize(
    ("settings", "step", "evaluated", "improved", "saves"),
    [
        (EACH, 4, True, False, True),
        (EACH, 4, False, False, False),
        (BEST, 4, True, True, True),
        (BEST, 4, True, False, False),
        (BEST, 4, False, True, False),
        (BEST, 4, False, False, False),
        (THIRD, 3, False, False, True),
        (THIRD, 4, True, True, False),
        (THIRD, 5, False, False, False),
        ({**BEST, "save_interval": 3}, 4, True, True, True),
        ({**BEST, "save_interval": 3}, 3, True, False, True),
        ({**EACH, **WSD}, 6, False, False, True),
        ({**EACH, **WSD}, 7, False, False, False),
        ({**EACH, **WSD, "schedule": "cosine", "warmup_iters": 6}, 6, False, False, False),
    ],
)
def test_when_a_save_is_due(
    settings: dict[str, object], step: int, evaluated: bool, improved: bool, saves: bool
) -> None:
    config = resolve({"warmup_iters": 0, **settings})
    assert due(config, step, evaluated, improved) is saves


@pytest.mark.parametrize("beside", [True, False])
def test_saves_may_fail_twice_in_a_row_and_end_the_run_the_third_time(
    beside: bool,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = checkpoint.save

    def full(world: Any, folder: Path, mine: Any, *rest: Any) -> Path:
        if mine.state.step in (1, 2, 4, 5, 7, 8, 9):
            raise StorageError("disk full: made up")
        return save(world, folder, mine, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    values = {"max_iters": 20, "save_interval": 1, "eval_interval": 20, "async_save": beside}
    with pytest.raises(StorageError, match="made up"):
        go(tiny(corpus, tmp_path, **values))
    err = capsys.readouterr().err
    assert "not saved at step 1, training goes on: disk full" in err
    for step, good in ((4, 3), (5, 3), (7, 6), (8, 6)):
        told = f"not saved at step {step}, training goes on; the last good one is step-{good:08d}:"
        assert told in err
    saved = [event["step"] for event in events_of(tmp_path) if event["event"] == "save"]
    assert saved == [3, 6]


def test_the_last_save_must_succeed_even_if_it_is_the_first_that_fails(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise StorageError("disk full: made up")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StorageError, match="made up"):
        go(tiny(corpus, tmp_path, max_iters=2, eval_interval=4))


def test_each_save_is_an_event_with_its_size_and_its_checkpoint_says_of_what_it_is(
    corpus: Path, tmp_path: Path
) -> None:
    go(tiny(corpus, tmp_path))
    saves = [event for event in events_of(tmp_path) if event["event"] == "save"]
    assert [event["step"] for event in saves] == [4, 8]
    last = tmp_path / "checkpoints" / storage.step_name(8)
    assert saves[-1]["bytes"] == sum(path.stat().st_size for path in last.iterdir())
    assert all(0 <= event["seconds"] < 60 for event in saves)
    data = DataFolder.open(corpus)
    _, facts = load_state(last)
    assert facts.keys() == {
        *("dataset_id", "tokenizer_fingerprint", "world_size", "layout"),
        *("threads_per_rank", "dtype", "torch", "scaler"),
    }
    assert facts["dataset_id"] == data.dataset_id
    assert facts["tokenizer_fingerprint"] == data.tokenizer.fingerprint
    assert (facts["world_size"], facts["torch"]) == (1, torch.__version__)


@pytest.mark.parametrize(
    ("chosen", "memory", "local", "shard", "beside"),
    [
        (None, 4000, 1, 1, True),
        (None, 3999, 1, 1, False),
        (None, 8000, 2, 1, True),
        (None, 7999, 2, 1, False),
        (None, 2000, 1, 2, True),
        (None, 1999, 1, 2, False),
        (True, 1, 1, 1, True),
        (False, 10**9, 1, 1, False),
    ],
)
def test_saves_go_on_beside_where_a_quarter_of_the_memory_holds_the_copies(
    chosen: bool | None,
    memory: int,
    local: int,
    shard: int,
    beside: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = resolve({"async_save": chosen})
    monkeypatch.setattr(saver_module, "total_memory_bytes", lambda device: memory)
    monkeypatch.setattr(optim, "checkpoint_bytes", lambda config: 10)
    model = SimpleNamespace(num_params=lambda: 100)
    saver: Any = SimpleNamespace(
        config=config,
        train_step=SimpleNamespace(model=model, layout=SimpleNamespace(shard=shard)),
        world=replace(ONE, local_size=local),
    )
    assert Saver._is_to_go_on_beside(saver) is beside


@pytest.mark.parametrize("later", [True, False])
def test_what_a_commit_raises_is_known_when_it_has_ended(later: bool) -> None:
    may_end, error = threading.Event(), KeyboardInterrupt()

    def commit() -> None:
        assert not later or may_end.wait(60)
        raise error

    writing = Writing(TrainState(step=4), commit, later)
    assert writing.ended is not later
    may_end.set()
    assert writing.wait() is error
    assert writing.ended
    assert Writing(TrainState(), lambda: None, later).wait() is None
