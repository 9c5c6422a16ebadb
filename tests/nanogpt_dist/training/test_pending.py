"""Results that come late, as on CUDA: they are read one step late, and nothing else changes."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import TrainState, load_state
from nanogpt_dist.config import resolve
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, ConfigError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training import step as step_module
from nanogpt_dist.training.check_resume import check_resume
from nanogpt_dist.training.pending import PendingResults
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.replicas import Replicas
from nanogpt_dist.training.roll_back import RollBack
from nanogpt_dist.training.spikes import Limits
from nanogpt_dist.training.step import StepResult, TrainStep
from nanogpt_dist.transfers import Readout
from tests.nanogpt_dist.small import ONE, events_of, go, records, tiny, weights_sha256

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


def test_results_are_read_before_copies_are_compared(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: None,
    order: list[str],
) -> None:
    monkeypatch.setattr(Replicas, "is_due", lambda self, step: step == 2)
    compare = lambda self, step, good: order.append(f"compare {step} ({good})")  # noqa: E731
    monkeypatch.setattr(Replicas, "compare", compare)
    go(tiny(corpus, tmp_path, max_iters=4, eval_interval=4))
    first = "compare 2 (there is no checkpoint yet)"
    assert order[:6] == ["make 1", "make 2", "read 1", "read 2", first, "make 3"]
    assert order[-2:] == ["evaluate 4", "compare 4 (there is no checkpoint yet)"]


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


class Pending:
    """PendingResults without a run: `logged`, `warned` and the events tell what it does."""

    def __init__(self, run: Path, on_spike: str = "log", documents: Any = (), **more: Any) -> None:
        self.logged: list[int] = []
        self.warned: list[str] = []
        self.asked: list[int] = []
        self.run, self.documents = run, documents
        self.state = TrainState()
        progress: Any = SimpleNamespace(
            config=resolve({"on_spike": on_spike, **more}),
            run=run,
            recorder=self,
            console=SimpleNamespace(line=self.warned.append),
            log_step=lambda made, result: self.logged.append(made.step),
        )
        saver: Any = SimpleNamespace(last_good=lambda state: "there is no checkpoint yet")
        self.progress = progress
        self.results = PendingResults(self.state, progress, saver, 3, self.documents_of)

    def documents_of(self, step: int) -> list[int]:
        self.asked.append(step)
        if isinstance(self.documents, Exception):
            raise self.documents
        return list(self.documents)

    def step(
        self, loss: float = 2.0, norm: float = 1.0, skipped: bool = False, late: bool = False
    ) -> None:
        """Count a step; losses above 3 are spikes."""
        self.state.count(10)
        values = torch.tensor([norm, loss, float(skipped or math.isnan(norm))])
        figures = Late(values, lambda _: None) if late else Readout(values)
        self.results.add(StepResult(0.1, Limits(loss=3.0), figures, 1))


def test_late_results_are_read_one_step_later(tmp_path: Path) -> None:
    run = Pending(tmp_path)
    assert run.results.all_read
    for made in range(1, 4):
        run.step(late=True)
        assert run.logged == list(range(1, made))
        assert not run.results.all_read
    run.step()
    assert run.logged == [1, 2, 3, 4]
    assert run.results.all_read
    run.step(late=True)
    run.results.read_all()
    assert run.logged == [1, 2, 3, 4, 5]
    assert run.state.losses == (2.0,) * 5


def test_skipped_steps_are_counted_and_only_three_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = Pending(tmp_path, documents=[4, 5000, 6, 7, 8])
    for bad in (True, True, False, True, True, False):
        run.step(norm=math.nan if bad else 1.0)
        assert run.results.skipped is bad
    assert (run.state.skipped, run.logged) == (4, [1, 2, 3, 4, 5, 6])
    assert run.state.losses == (2.0, 2.0)
    assert run.warned[0] == (
        "warning: step 1 skipped, its gradient's norm is nan (loss 2.0000); documents 4, 5,000, 6 "
        "and 2 more"
    )
    assert [event["step"] for event in events_of(tmp_path)] == run.asked == [1, 2, 4, 5]
    first = events_of(tmp_path)[0]
    assert (first["event"], first["documents"]) == ("skip", [4, 5000, 6, 7, 8])
    for _ in range(2):
        run.step(norm=math.nan)
    told = "no finite gradient in 3 steps up to step 9; there is no checkpoint yet: "
    with pytest.raises(ConfigError, match=told) as ended:
        run.step(norm=math.nan)
    assert ended.value.agreed
    assert run.state.skipped == 7


def test_spikes_in_a_row_are_told_of_once_and_each_row_anew(tmp_path: Path) -> None:
    run = Pending(tmp_path, documents=[1, 2, 3])
    for loss in (2.0, 9.0, 9.0, 9.0, 2.0, 8.0):
        run.step(loss)
    told = "warning: step {} is a spike: loss {:.4f} where 3.0000 is the most; documents 1, 2, 3"
    assert run.warned == [told.format(2, 9.0), told.format(6, 8.0)]
    events = events_of(tmp_path)
    assert [(event["event"], event["step"], event["doing"]) for event in events] == [
        ("spike", 2, "log"),
        ("spike", 6, "log"),
    ]
    assert (events[0]["loss"], events[0]["grad_norm"]) == (9.0, 1.0)
    assert (run.state.skipped, len(run.state.losses)) == (0, 6)


def test_skipped_spikes_are_all_told_of_and_ten_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = Pending(tmp_path, "skip")
    for row in (9, 9):
        for _ in range(row):
            run.step(9.0, skipped=True)
        run.step()
    assert len(run.warned) == run.state.skipped == 18
    assert ", skipped: loss 9.0000" in run.warned[0]
    assert run.warned[0].endswith("is the most")  # it has no documents
    for _ in range(9):
        run.step(9.0, skipped=True)
    with pytest.raises(ConfigError, match="10 spikes in a row up to step 30; there is no check"):
        run.step(9.0, skipped=True)


def test_a_spike_is_rolled_back_at_once(tmp_path: Path) -> None:
    run = Pending(tmp_path, "rollback")
    run.step()
    with pytest.raises(RollBack) as back:
        run.step(9.0)
    assert back.value.step == 2
    assert len(run.warned) == 1


def test_other_ranks_note_nothing_and_a_list_of_names_ends_no_run(tmp_path: Path) -> None:
    run = Pending(tmp_path, documents=BadDataError("a damaged shard"))
    run.step(9.0)
    run.step(2.0)
    run.progress.recorder = None
    run.step(9.0)
    assert run.asked == [1]
    assert [(event["step"], event["documents"]) for event in events_of(tmp_path)] == [(1, [])]
    assert len(run.warned) == 2


def test_a_batch_of_another_shape_is_judged_by_none_before_it(tmp_path: Path) -> None:
    run = Pending(tmp_path, batch_ramp="0:12,3:24")
    seen = []
    for _ in range(5):
        run.step()
        seen.append(len(run.state.losses))
    assert seen == [1, 2, 3, 1, 2]
