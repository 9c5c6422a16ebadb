"""Results that come late, as on CUDA: they are read one step late, and nothing else changes."""

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import load_state
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training import step as step_module
from nanogpt_dist.training.check_resume import check_resume
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.transfers import Readout
from tests.nanogpt_dist.small import ONE, go, records, tiny, weights_sha256

CLOCK = ("tokens_per_second", "mfu", "memory_bytes", "time", "interval_s")
CLOCK += ("data_s", "communication_s", "save_s", "eval_s")


class Late(Readout):
    """It comes late also from a CPU."""

    def __init__(self, values: Tensor, wait: Any) -> None:
        super().__init__(values.clone(), wait)
        self.late = True


class After(StopRequest):
    """A request to stop that comes while step `step` is made."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.asked, self.step = 0, step

    def __bool__(self) -> bool:
        self.asked += 1
        return self.asked > self.step  # the first time is before the first step


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "Readout", Late)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in the order of time: "make 1", "read 1", "evaluate 4"."""
    told: list[str] = []
    make, log, evaluate = TrainStep.step, Progress.log_step, Progress.log_evaluation

    def making(self: TrainStep, step: int, *rest: Any) -> Any:
        told.append(f"make {step + 1}")
        return make(self, step, *rest)

    def reading(self: Progress, state: Any, result: Any) -> None:
        told.append(f"read {state.step}")
        log(self, state, result)

    def evaluating(self: Progress, state: Any, *found: Any) -> None:
        told.append(f"evaluate {state.step}")
        evaluate(self, state, *found)

    monkeypatch.setattr(TrainStep, "step", making)
    monkeypatch.setattr(Progress, "log_step", reading)
    monkeypatch.setattr(Progress, "log_evaluation", evaluating)
    return told


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the gradient of `steps`, counted from 1, be NaN."""
    make = TrainStep.step

    def poisoned(self: TrainStep, step: int, *rest: Any) -> Any:
        if step + 1 not in steps:
            return make(self, step, *rest)
        handle = self.model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
        result = make(self, step, *rest)
        handle.remove()
        return result

    monkeypatch.setattr(TrainStep, "step", poisoned)


def figures(run: Path) -> list[dict[str, float]]:
    """The record, but for what a clock says."""
    return [
        {name: value for name, value in record.items() if name not in CLOCK}
        for record in records(run)
    ]


def skipped_of(run: Path) -> dict[int, int]:
    """Steps that each checkpoint calls skipped."""
    states = [load_state(path)[0] for path in storage.list_steps(run / "checkpoints")]
    return {state.step: state.skipped for state in states}


def test_a_result_is_read_while_the_next_step_is_made(
    corpus: Path,
    tmp_path: Path,
    late: None,
    order: list[str],
) -> None:
    go(tiny(corpus, tmp_path / "run", max_iters=8, save_interval=6, log_interval=1))
    assert order == [
        *("make 1", "make 2", "read 1", "make 3", "read 2", "make 4", "read 3", "read 4"),
        "evaluate 4",
        # step 6 is saved
        *("make 5", "make 6", "read 5", "read 6", "make 7", "make 8", "read 7", "read 8"),
        "evaluate 8",
    ]


def test_what_is_there_is_read_at_once(corpus: Path, tmp_path: Path, order: list[str]) -> None:
    go(tiny(corpus, tmp_path / "run", max_iters=2, eval_interval=2))
    assert order == ["make 1", "read 1", "make 2", "read 2", "evaluate 2"]


@pytest.mark.parametrize("changes", [{}, {"log_interval": 3}, {"save_interval": 3}])
def test_a_late_reader_records_what_one_at_once_does(
    changes: dict[str, object],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(monkeypatch, {2, 3, 5, 8})
    settings = {"max_iters": 13, "log_interval": 1, "dropout": 0.1, **changes}
    go(tiny(corpus, tmp_path / "at-once", **settings))
    monkeypatch.setattr(step_module, "Readout", Late)
    go(tiny(corpus, tmp_path / "late", **settings))
    assert figures(tmp_path / "late") == figures(tmp_path / "at-once")
    assert skipped_of(tmp_path / "late") == skipped_of(tmp_path / "at-once")
    assert skipped_of(tmp_path / "late")[13] == 4
    assert weights_sha256(tmp_path / "late", 13) == weights_sha256(tmp_path / "at-once", 13)


def test_a_stop_waits_for_the_step_that_is_made(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: None,
    order: list[str],
) -> None:
    poison(monkeypatch, {3})
    config = tiny(corpus, tmp_path / "run", max_iters=8, log_interval=1, eval_interval=8)
    result = go(config, stop=After(3))
    assert (result.verdict, result.step) == ("stopped", 3)
    assert order[-3:] == ["make 3", "read 2", "read 3"]
    assert skipped_of(tmp_path / "run") == {3: 1}
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]

    go(config)
    go(tiny(corpus, tmp_path / "whole", max_iters=8, log_interval=1, eval_interval=8))
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert weights_sha256(tmp_path / "run", 8) == weights_sha256(tmp_path / "whole", 8)


def test_a_resumed_run_is_the_undisturbed_one(corpus: Path, tmp_path: Path, late: None) -> None:
    proof = check_resume(tiny(corpus, tmp_path / "run", dropout=0.1), ONE, StopRequest())
    assert proof.files == 2
    assert len(proof.losses) == 2


def test_a_skipped_step_is_warned_of_with_its_own_number(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, {2, 4})
    go(tiny(corpus, tmp_path / "run", max_iters=5, eval_interval=5))
    warnings = [line for line in capsys.readouterr().err.splitlines() if " skipped" in line]
    assert [line.split(",")[0] for line in warnings] == [
        "warning: step 2 skipped",
        "warning: step 4 skipped",
    ]


@pytest.mark.parametrize(
    ("save_interval", "made"),
    [pytest.param(2, 5, id="a save waits"), pytest.param(20, 6, id="nothing waits")],
)
def test_too_many_skipped_steps_end_the_run_one_step_later_at_the_latest(
    save_interval: int,
    made: int,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: None,
    order: list[str],
) -> None:
    poison(monkeypatch, {3, 4, 5, 6, 7})
    intervals = {"eval_interval": 20, "save_interval": save_interval}
    config = tiny(corpus, tmp_path / "run", max_iters=20, **intervals)
    good = (
        "the last good checkpoint is step-00000002" if made == 5 else "there is no checkpoint yet"
    )
    with pytest.raises(ConfigError, match=f"no finite gradient in 3 steps up to step 5; {good}: "):
        go(config)
    assert order[-1] == "read 5"
    assert [told for told in order if told.startswith("make")][-1] == f"make {made}"
    assert skipped_of(tmp_path / "run") == ({2: 0} if save_interval == 2 else {})


def test_a_first_evaluation_may_take_long_but_not_the_steps_before_it(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: None,
    order: list[str],
) -> None:
    settle = World.settle

    def noted(self: World, settled: bool = True) -> None:
        order.append("settle" if settled else "may take long")
        settle(self, settled)

    monkeypatch.setattr(World, "settle", noted)
    monkeypatch.setattr(TrainStep, "starts_slowly", True)
    go(tiny(corpus, tmp_path / "run", max_iters=6, eval_interval=4))
    assert order.count("may take long") == 3  # two steps, one evaluation
    last = max(i for i, told in enumerate(order) if told == "may take long")
    assert order[last - 1] == "read 4", order
