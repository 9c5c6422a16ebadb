"""Spikes: what is one, what becomes of it, and that it is the same after a resume and on ranks."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.checkpoint import TrainState, load_state
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.documents import documents_of_step
from nanogpt_dist.errors import BadDataError, ConfigError
from nanogpt_dist.training import step as step_module
from nanogpt_dist.training.optim import named_state
from nanogpt_dist.training.pending import MAX_SPIKES
from nanogpt_dist.training.plan import make_plan
from nanogpt_dist.training.roll_back import DIGEST, STEPS, for_run_json
from nanogpt_dist.training.spikes import FEWEST, WINDOW, Limits, limits, remember
from nanogpt_dist.training.step import TrainStep
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, events_of, go, records, tiny, weights_sha256
from tests.nanogpt_dist.spiking import AT_STEP, SETTINGS, poison, raise_rates
from tests.nanogpt_dist.training.test_pending import After, Late

LEFT_OUT = (AT_STEP - STEPS + 1, AT_STEP)
FINITE = st.floats(1e-6, 1e6)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    poison()
    raise_rates(None)


def spikes(run: Path) -> list[int]:
    return [event["step"] for event in events_of(run) if event["event"] == "spike"]


def state_of(run: Path, step: int) -> TrainState:
    return load_state(run / "checkpoints" / f"step-{step:08d}")[0]


def losses(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in records(run) if "loss" in line}


def after(values: list[float]) -> Limits:
    state = TrainState()
    for value in values:
        remember(state, value, value)
    return limits(state)


def test_at_first_nothing_is_judged() -> None:
    assert after([3.0] * (FEWEST - 1)) == Limits(math.inf, math.inf)
    assert after([3.0] * FEWEST).loss == pytest.approx(3.3)
    assert after([3.0] * FEWEST).grad_norm == pytest.approx(30)


def test_what_is_judged_by_begins_anew_with_other_batches_and_leaves_out_skipped_steps() -> None:
    state = TrainState(losses=(3.0,) * FEWEST, grad_norms=(1.0,) * FEWEST)
    remember(state, 9.0, 9.0, skipped=True)
    assert state.losses == (3.0,) * FEWEST
    remember(state, 5.0, 2.0, begins_anew=True)
    assert (state.losses, state.grad_norms) == ((5.0,), (2.0,))
    remember(state, 9.0, 9.0, skipped=True, begins_anew=True)
    assert state.losses == state.grad_norms == ()


def test_the_limits_are_those_of_every_version() -> None:
    """By the last 64 steps, from the 32nd on; what they are is in docs, and in runs that resume."""
    assert after([3.0] * 31) == Limits()
    assert after([3.0] * 32).loss == pytest.approx(3.3)
    for first in (1, 2, 7):  # 64 losses around first + 31.5, on average 16 from it
        found = after([float(n) for n in range(1, first + 64)])
        assert found.loss == pytest.approx(first + 31.5 + 8 * 1.4826 * 16)
    noisy = after([math.exp(0.2 * n / 32) for n in range(-32, 33)])
    assert noisy.grad_norm == pytest.approx(math.exp(0.2 / 64 + 20 * 1.4826 * 0.1), rel=1e-9)
    wild = after([10.0 ** (6 * (-1) ** n) for n in range(64)])
    assert wild.grad_norm == pytest.approx(1000, rel=1e-9)
    assert after([0.0] * 64).grad_norm == pytest.approx(1e-29, rel=1e-9)
    state = TrainState()
    remember(state, math.nan, 1.0)
    remember(state, 1.0, math.inf)
    assert (state.losses, state.grad_norms) == ((), ())


def test_what_stands_out_is_told() -> None:
    most = Limits(2.0, 3.0)
    for loss, norm, told in (
        (2.0, 3.0, ""),
        (2.5, 3.0, "loss 2.5000 where 2.0000 is the most"),
        (2.0, 3.5, "norm 3.50 where 3.00 is the most"),
        (2.5, 3.5, "loss 2.5000 where 2.0000 is the most, norm 3.50 where 3.00 is the most"),
    ):
        assert most.told(loss, norm) == told
        assert most.exceeded_by(loss, norm) == bool(told)
    for loss, norm in ((math.nan, 9.0), (9.0, math.nan), (math.inf, 1.0), (9.0, math.inf)):
        assert not most.exceeded_by(loss, norm)


def test_the_limit_follows_the_noise_and_not_a_few_wild_values() -> None:
    draw = random.Random(1)
    noisy = [draw.gauss(4, 0.3) for _ in range(WINDOW)]
    calm = after(noisy).loss
    assert calm == pytest.approx(4 + 8 * 0.3, rel=0.1)
    assert after([*noisy[:-8], *[1e9] * 8]).loss == pytest.approx(calm, rel=0.1)
    assert not after(noisy).exceeded_by(math.nan, 1)
    assert not after(noisy).exceeded_by(1, math.inf)


@given(st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, 0.0])), max_size=200))
def test_any_results_have_limits_above_their_median(values: list[float]) -> None:
    finite = [value for value in values if math.isfinite(value)][-WINDOW:]
    found = after(values)
    if len(finite) < FEWEST:
        assert found == Limits()
    else:
        assert math.isfinite(found.loss)
        assert math.isfinite(found.grad_norm)
        assert found.loss >= np.median(finite)
        assert found.grad_norm >= 9 * max(np.median(finite), 1e-30)


def test_a_poisoned_batch_is_told_of_with_its_documents(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(AT_STEP, AT_STEP + 1, AT_STEP + 2)
    run = tmp_path / "a"
    go(tiny(corpus, run, **SETTINGS))
    (event,) = [event for event in events_of(run) if event["event"] == "spike"]  # once in a row
    assert (event["step"], event["doing"], event["documents"]) == (AT_STEP, "log", [0])
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert told.startswith(f"warning: step {AT_STEP} is a spike: loss {event['loss']:.4f} where ")
    assert told.endswith("; documents 0")
    assert state_of(run, 72).skipped == 0
    assert list(losses(run)) == list(range(1, 73))  # it goes on


def test_a_rate_that_is_a_hundred_times_too_high_is_told_of_in_two_steps(
    corpus: Path, tmp_path: Path
) -> None:
    raise_rates(100)  # by then the losses of the first steps are no noise any more
    go(tiny(corpus, tmp_path / "a", **{**SETTINGS, "schedule": "constant", "max_iters": 104}))
    assert 100 < spikes(tmp_path / "a")[0] <= 102


def test_skip_leaves_weights_and_moments_as_they_were(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(48)
    run = tmp_path / "a"
    every = {**SETTINGS, "save_interval": 1, "keep_checkpoints": 100, "max_iters": 49}
    kept: list[Any] = []
    make = TrainStep.step

    def looked_at(self: TrainStep, step: int, *rest: Any) -> Any:
        state = named_state(self.model, self.optimizer).values()
        kept.append([value.clone() for value in (*self.model.parameters(), *state)])
        return make(self, step, *rest)

    monkeypatch.setattr(TrainStep, "step", looked_at)
    go(tiny(corpus, run, on_spike="skip", **every))
    assert spikes(run) == [48]
    assert all(map(torch.equal, kept[47], kept[48]))  # before step 48, and after it
    assert not all(map(torch.equal, kept[46], kept[47]))
    assert not (run / "checkpoints" / "step-00000048").exists()  # a save waits for a good step
    assert state_of(run, 49).skipped == 1


def test_skip_ends_a_run_that_only_spikes(corpus: Path, tmp_path: Path) -> None:
    poison(*range(48, 72))
    with pytest.raises(ConfigError, match=f"{MAX_SPIKES} spikes in a row up to step 57; the last"):
        go(tiny(corpus, tmp_path / "a", on_spike="skip", **SETTINGS))


def test_roll_back_leaves_out_the_steps_before_a_spike(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(AT_STEP)
    run = tmp_path / "a"
    result = go(tiny(corpus, run, on_spike="rollback", **SETTINGS), fresh=True)  # which it is once
    assert result.tokens == (72 - STEPS) * 4 * 2 * 32
    assert json.loads((run / "run.json").read_text())["steps_left_out"] == [list(LEFT_OUT)]
    assert state_of(run, 48).left_out == ()
    assert state_of(run, 64).left_out == state_of(run, 72).left_out == (LEFT_OUT,)
    told = [(event["event"], event["step"]) for event in events_of(run)]
    # a save is told of when it has ended, while the next steps go on
    others = [each for each in told if each[0] != "save"]
    assert others[1:4] == [("spike", 60), ("rollback", 60), ("resume", 48)]
    assert sorted(step for event, step in told if event == "save") == [16, 32, 48, 64, 72]
    assert [step for step in range(1, 73) if step not in losses(run)] == list(range(51, 61))
    assert "rolling back to step 48, and on without steps 51 to 60" in capsys.readouterr().err


@pytest.mark.parametrize("step", [12, 55, 66])
def test_a_run_that_has_rolled_back_resumes_to_the_same_bits(
    step: int, corpus: Path, tmp_path: Path
) -> None:
    poison(AT_STEP)
    settings = {**SETTINGS, "on_spike": "rollback", "dropout": 0.1}
    go(tiny(corpus, tmp_path / "whole", **settings))
    go(tiny(corpus, tmp_path / "parts", **settings), stop=After(step))
    go(tiny(corpus, tmp_path / "parts", **settings))
    assert weights_sha256(tmp_path / "parts", 72) == weights_sha256(tmp_path / "whole", 72)
    aside = {path.name for path in (tmp_path / "parts" / "checkpoints").glob("rolled-back-*")}
    assert aside == ({"rolled-back-step-00000055"} if step == 55 else set())
    assert state_of(tmp_path / "parts", 72) == state_of(tmp_path / "whole", 72)


def test_what_is_left_out_stays_so_when_older_checkpoints_are_resumed(
    corpus: Path, tmp_path: Path
) -> None:
    """run.json knows what a checkpoint from before the spike does not."""
    import shutil

    poison(AT_STEP)
    settings = {**SETTINGS, "on_spike": "rollback"}
    run = tmp_path / "a"
    go(tiny(corpus, run, **settings))
    weights = weights_sha256(run, 72)
    for step in (64, 72):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    poison()
    go(tiny(corpus, run, **settings))
    assert weights_sha256(run, 72) == weights


def test_what_a_copied_checkpoint_leaves_out_stays_so(corpus: Path, tmp_path: Path) -> None:
    """A checkpoint knows it, where there is no run.json that does."""
    poison(AT_STEP)
    settings = {**SETTINGS, "on_spike": "rollback"}
    go(tiny(corpus, tmp_path / "a", **settings))
    before = tmp_path / "a" / "checkpoints" / "step-00000064"
    go(tiny(corpus, tmp_path / "b", **settings), branch_from=before)
    assert state_of(tmp_path / "b", 72).left_out == (LEFT_OUT,)


def test_a_spike_before_the_first_checkpoint_begins_anew(corpus: Path, tmp_path: Path) -> None:
    poison(40)
    run = tmp_path / "a"
    changes = {**SETTINGS, "save_interval": 1000, "on_spike": "rollback"}
    go(tiny(corpus, run, **changes), fresh=True)
    assert [event["event"] for event in events_of(run)][:4] == [
        *("start", "spike", "rollback", "start"),
    ]
    assert state_of(run, 72).left_out == ((31, 40),)
    (rolled,) = [event for event in events_of(run) if event["event"] == "rollback"]
    assert (rolled["step"], rolled["to"], rolled["first"], rolled["last"]) == (40, 0, 31, 40)


def test_roll_backs_to_one_checkpoint_end(corpus: Path, tmp_path: Path) -> None:
    poison(*range(50, 73))
    run = tmp_path / "a"
    with pytest.raises(ConfigError, match=r"is a spike again, 3 times back at step 32:"):
        go(tiny(corpus, run, on_spike="rollback", **SETTINGS))
    events = [event for event in events_of(run) if event["event"] == "rollback"]
    assert len(events) == 3
    assert all(event["to"] == 32 for event in events)
    assert json.loads((run / "status.json").read_text())["verdict"] == "failed"


@pytest.mark.parametrize("on_spike", ["skip", "rollback"])
def test_results_that_come_late_are_judged_in_time(
    on_spike: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "Readout", Late)
    poison(AT_STEP)
    go(tiny(corpus, tmp_path / "a", on_spike=on_spike, **SETTINGS))
    state = state_of(tmp_path / "a", 72)
    assert spikes(tmp_path / "a") == [AT_STEP]
    assert state.skipped == (on_spike == "skip")
    assert state.left_out == ((LEFT_OUT,) if on_spike == "rollback" else ())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("on_spike", ["skip", "rollback"])
def test_ranks_do_what_one_process_does(
    strategy: str, on_spike: str, corpus: Path, tmp_path: Path
) -> None:
    poison(AT_STEP)
    go(tiny(corpus, tmp_path / "one", on_spike=on_spike, **SETTINGS))
    in_ranks("spiking", 2, strategy, on_spike, corpus, tmp_path / "two")
    one, two = (state_of(tmp_path / name, 72) for name in ("one", "two"))
    assert (one.left_out, one.skipped, one.tokens) == (two.left_out, two.skipped, two.tokens)
    alone, ranks = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert alone.keys() == ranks.keys()
    for step in alone.keys() - {AT_STEP}:  # whose ids each rank has drawn for itself
        assert alone[step] == pytest.approx(ranks[step], rel=1e-4)


def test_a_damaged_list_of_steps_is_refused(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    go(tiny(corpus, run))
    good = for_run_json(((3, 4),))
    damaged = ({"steps_left_out": [[1, "x"]]}, {"steps_left_out": [[2, 4]]}, {DIGEST: "00"})
    for content in ({**good, **change} for change in damaged):
        (run / "run.json").write_text(json.dumps(content))
        with pytest.raises(BadDataError, match=r"steps_left_out in .* take it out"):
            go(tiny(corpus, run, max_iters=12))


def test_documents_of_a_step_are_those_that_its_windows_overlap(
    prepared: Path, tmp_path: Path
) -> None:
    data = DataFolder.open(prepared)
    plan = make_plan(tiny(prepared, tmp_path / "a"), ONE)
    split = data.split("train")
    ids = split.read(0, split.tokens)
    number = np.concatenate([[0], np.cumsum(ids == data.tokenizer.eot_id)])[:-1]
    for step in (1, 2, 77):
        expected: set[Any] = set()
        for start in plan.batches.starts(step - 1):
            expected |= set(number[start : start + 33].tolist())
        assert documents_of_step(data, plan.batches, step) == sorted(expected)


@pytest.mark.thorough
def test_of_ten_thousand_clean_steps_none_is_a_spike(corpus: Path, tmp_path: Path) -> None:
    calm = {"eval_interval": 10**6, "log_interval": 1, "keep_checkpoints": 2}
    go(tiny(corpus, tmp_path / "a", max_iters=7000, **calm))
    small = {"batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.003}
    go(tiny(corpus, tmp_path / "b", max_iters=7000, **calm, **small))
    assert spikes(tmp_path / "a") == spikes(tmp_path / "b") == []


@pytest.mark.thorough
def test_each_of_forty_faults_is_told_of_within_two_steps(corpus: Path, tmp_path: Path) -> None:
    draw = random.Random(2)
    for seed in range(20):
        at = draw.randrange(100, 200)
        settings = {**SETTINGS, "schedule": "constant", "seed": seed, "max_iters": at + 3}
        settings |= {"save_interval": 1000}
        poison(at)
        go(tiny(corpus, tmp_path / f"poison-{seed}", **settings))
        poison()
        assert spikes(tmp_path / f"poison-{seed}")[0] == at
        raise_rates(at)
        go(tiny(corpus, tmp_path / f"rate-{seed}", **settings))
        raise_rates(None)
        assert at < spikes(tmp_path / f"rate-{seed}")[0] <= at + 2
