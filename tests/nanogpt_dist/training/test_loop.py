"""The training run: what it computes, what it leaves behind, what does not end it."""

import io
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanogpt_dist import signals, storage
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Prefetcher
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    ConfigError,
    StoppedError,
    StorageError,
)
from nanogpt_dist.load_config import load
from nanogpt_dist.signals import SIGNALS, StopRequest
from nanogpt_dist.storage import run_folder
from nanogpt_dist.training import loop
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.plan import fit_to_data
from nanogpt_dist.training.saver import Saver
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import ONE, events_of, go, records, tiny, weights_sha256


def test_a_run_learns_and_leaves_what_it_promises(corpus: Path, tmp_path: Path) -> None:
    result = go(tiny(corpus, tmp_path / "run", max_iters=60, eval_interval=30, log_interval=1))
    assert result.step == 60
    assert result.tokens == 60 * 8 * 32
    found = records(tmp_path / "run")
    losses = [record["loss"] for record in found if "loss" in record]
    # the ids; their 320 rows do not count
    assert losses[0] == pytest.approx(math.log(257), abs=0.1)
    assert losses[-1] < losses[0] - 1.5
    assert result.val_loss == [record["val_loss"] for record in found if "val_loss" in record][-1]
    assert (tmp_path / "run" / "config.toml").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["verdict"] == "done"
    last = Path(result.checkpoint)
    assert {path.name for path in last.iterdir()} == {
        *(
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
            "config.toml",
            "tokenizer.json",
            "manifest.json",
        )
    }
    assert not storage.verify(last)
    assert storage.read_latest(tmp_path / "run" / "checkpoints") == last.name


def test_steps_that_are_left_out_are_counted_and_not_made(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "left_out", lambda *run: ((3, 4),))
    result = go(tiny(corpus, tmp_path / "run", max_iters=6, log_interval=1))
    assert (result.step, result.tokens) == (6, 4 * 8 * 32)
    made = [record["step"] for record in records(tmp_path / "run") if "loss" in record]
    assert made == [1, 2, 5, 6]


def test_the_config_it_leaves_can_be_given_back(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"))
    from nanogpt_dist.load_config import load

    assert load(str(tmp_path / "run" / "config.toml")).model_dump(exclude={"vocab_size"}) == tiny(
        corpus, tmp_path / "run"
    ).model_dump(exclude={"vocab_size"})


def test_the_loss_is_the_mean_over_the_global_batch_for_any_micro_batch(
    corpus: Path,
    tmp_path: Path,
) -> None:
    losses = []
    for i, (batch_size, accumulation) in enumerate([(8, 1), (4, 2), (1, 8)]):
        run = tmp_path / str(i)
        go(
            tiny(
                corpus,
                run,
                batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                log_interval=1,
            )
        )
        losses.append([record["loss"] for record in records(run) if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++ for the CPU")
@pytest.mark.thorough
def test_a_compiled_run_is_the_same_run(corpus: Path, tmp_path: Path) -> None:
    plain, compiled = (
        go(tiny(corpus, tmp_path / name, n_layer=1, compile=name == "compiled"))
        for name in ("plain", "compiled")
    )
    assert compiled.val_loss == pytest.approx(plain.val_loss, rel=1e-5)
    names = [
        load_file(Path(run.checkpoint) / "model.safetensors").keys() for run in (plain, compiled)
    ]
    assert names[0] == names[1]


def test_nothing_random_depends_on_what_was_drawn_before(corpus: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.rand(7 if name == "a" else 100)
        go(tiny(corpus, tmp_path / name, dropout=0.3))
    assert weights_sha256(tmp_path / "a", 8) == weights_sha256(tmp_path / "b", 8)


def test_evaluating_more_often_changes_no_weight(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "a", dropout=0.3, eval_interval=8))
    go(tiny(corpus, tmp_path / "b", dropout=0.3, eval_interval=1))
    assert weights_sha256(tmp_path / "a", 8) == weights_sha256(tmp_path / "b", 8)


def test_a_vocabulary_smaller_than_the_datas_is_refused(corpus: Path) -> None:
    data = DataFolder.open(corpus)
    with pytest.raises(ConfigError, match="type --vocab-size 257"):
        fit_to_data(resolve({"vocab_size": 200}), data)
    assert fit_to_data(resolve({}), data).vocab_size == 320


def test_status_says_running_from_the_first_update_on(corpus: Path, tmp_path: Path) -> None:
    seen = []

    class Looking(StopRequest):
        def __bool__(self) -> bool:
            seen.append(json.loads((tmp_path / "run" / "status.json").read_text())["verdict"])
            return False

    go(tiny(corpus, tmp_path / "run"), stop=Looking())
    assert set(seen) == {"running"}


@pytest.mark.parametrize("after", ["nothing", "another run"])
def test_a_run_that_is_renamed_while_it_trains_ends_and_leaves_one_folder(
    corpus: Path,
    tmp_path: Path,
    after: str,
) -> None:
    run = tmp_path / "run"

    class Tidying(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            if self.asked == 6:
                run.rename(tmp_path / "moved")
                if after == "another run":
                    go(tiny(corpus, run, max_iters=4))
            return False

    with pytest.raises(
        StorageError,
        match=f"was renamed while it trained; go on with: nanogpt train {tmp_path}/moved",
    ) as raised:
        go(tiny(corpus, run, save_interval=2), stop=Tidying())
    assert raised.value.agreed
    if after == "nothing":
        assert not run.exists()
    else:
        assert run_folder.verdict_of(run) == "done"
    assert run_folder.verdict_of(tmp_path / "moved") == "killed"
    assert go(load(str(tmp_path / "moved"))).step == 8


def test_a_damaged_shard_ends_the_run_on_all_ranks_whoever_reads_it(
    corpus: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    (shard,) = data.glob("*train*.bin")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    with pytest.raises(BadDataError, match=f"{shard.name}.*damaged") as raised:
        go(tiny(data, tmp_path / "run"))
    assert raised.value.agreed
    assert storage.list_steps(tmp_path / "run" / "checkpoints") == []


def test_a_failure_is_noted_before_what_is_closed_may_wait_for_the_device(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TrainStep, *about: object) -> None:
        raise BadDataError("a device that does not come back")

    noted: list[str | None] = []
    close = Prefetcher.close

    def closing(self: Prefetcher[Any]) -> None:
        noted.append(run_folder.verdict_of(tmp_path / "run"))
        close(self)

    monkeypatch.setattr(TrainStep, "step", fail)
    monkeypatch.setattr(Prefetcher, "close", closing)
    with pytest.raises(BadDataError, match="does not come back"):
        go(tiny(corpus, tmp_path / "run"))
    assert noted == ["failed"]


def test_no_run_begins_among_shards_or_in_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in corpus.iterdir())
    with pytest.raises(CannotCreateError, match="is a data set or a checkpoint; give another"):
        go(tiny(corpus, corpus))
    assert sorted(path.name for path in corpus.iterdir()) == before
    run = tmp_path / "run"
    saved = Path(go(tiny(corpus, run)).checkpoint)
    with pytest.raises(CannotCreateError, match="is a data set or a checkpoint; give another"):
        go(tiny(corpus, saved))
    shutil.copy(corpus / "manifest.json", run)  # one that was begun is gone on with
    assert go(tiny(corpus, run, max_iters=9)).step == 9


def test_a_run_that_is_deleted_while_it_trains_ends(corpus: Path, tmp_path: Path) -> None:
    class Tidying(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            if self.asked == 6:
                shutil.rmtree(tmp_path / "run")
            return False

    with pytest.raises(StorageError, match="was deleted or moved away while it trained"):
        go(tiny(corpus, tmp_path / "run", save_interval=2, async_save=False), stop=Tidying())
    assert not (tmp_path / "run").exists()


def test_a_terminal_that_goes_away_does_not_end_the_run(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert go(tiny(corpus, tmp_path / "run")).verdict == "done"


def test_a_stop_before_the_first_update_is_obeyed_at_once() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        StopRequest("nothing was done").listen()
        signal.raise_signal(signal.SIGHUP)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        StopRequest("nothing was done").listen()
        with pytest.raises(StoppedError, match="nothing was done"):
            signal.raise_signal(signal.SIGHUP)
        stop = StopRequest().listen()
        stop.defer()
        signal.raise_signal(signal.SIGTERM)
        assert stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_is_answered_at_once_where_it_takes_a_while(
    corpus: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    step = TrainStep.step

    def interrupted(self: TrainStep, number: int, *about: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err.endswith("leaves at once\n")
        signal.raise_signal(signal.SIGINT)  # torchrun passes on the terminal's
        assert "leaves at once" not in capfd.readouterr().err
        return step(self, number, *about)

    monkeypatch.setattr(TrainStep, "step", interrupted)
    try:
        result = go(tiny(corpus, tmp_path / "run"), stop=StopRequest().listen())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (result.step, result.verdict) == (1, "stopped")


def test_a_late_signal_is_answered_again_and_none_where_nobody_asked_for_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    stop = StopRequest()
    stop.defer("stopping")
    for seconds, told in ((0, "stopping\n"), (0.5, ""), (6, "stopping\n")):
        now = 100.0 + seconds
        stop._handle(signal.SIGINT, None)
        assert capfd.readouterr().err == told
    now = 108.0
    with pytest.raises(KeyboardInterrupt):
        stop._handle(signal.SIGINT, None)
    other = StopRequest()
    other.defer()
    other._handle(signal.SIGTERM, None)
    assert (bool(other), capfd.readouterr().err) == (True, "")


def test_a_finished_run_says_so_and_reports_what_it_came_to(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = go(tiny(corpus, tmp_path))
    capsys.readouterr()
    again = train(tiny(corpus, tmp_path), ONE, StopRequest())
    told = "is finished: 8 steps made, 8 asked for by --max-iters"
    assert told in capsys.readouterr().err
    assert again == replace(first, tokens_per_second=None)
    assert again.verdict == "done"
    assert train(tiny(corpus, tmp_path, max_iters=9), ONE, StopRequest()).step == 9


def test_a_stop_that_is_asked_for_before_the_first_step_ends_the_run(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = StopRequest("stopped before it began")
    stop.ask()
    with pytest.raises(StoppedError, match="stopped before it began"):
        go(tiny(corpus, tmp_path), stop=stop)
    assert storage.list_steps(tmp_path / "checkpoints") == []
    assert "parameters" in capsys.readouterr().err  # what it would have trained was told


def test_each_checkpoint_is_saved_once_and_where_it_is_due(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path, max_iters=10, save_interval=3, eval_interval=5, keep_checkpoints=9))
    saved = [event["step"] for event in events_of(tmp_path) if event["event"] == "save"]
    assert saved == [3, 6, 9, 10]
    evaluated = [record["step"] for record in records(tmp_path) if "val_loss" in record]
    assert evaluated == [5, 10]
    go(tiny(corpus, tmp_path, max_iters=11, save_interval=3, eval_interval=20))
    evaluated = [record["step"] for record in records(tmp_path) if "val_loss" in record]
    assert evaluated == [5, 10, 11]  # the last step always is


def test_each_line_of_the_record_says_what_its_time_went_to(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path, log_interval=1, save_interval=2, async_save=False))
    lines = {int(line["step"]): line for line in records(tmp_path) if "loss" in line}
    assert all(line["data_s"] > 0 for line in lines.values())
    # what came after step 4 stands in the line of step 5
    assert [step for step, line in lines.items() if line["eval_s"] > 0] == [5]
    assert [step for step, line in lines.items() if line["save_s"] > 0] == [3, 5, 7]


def test_evaluations_and_saves_do_not_count_as_training_time(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, hours = time.perf_counter, list[float]()

    def an_hour(call: Callable[..., Any]) -> Callable[..., Any]:
        def lasting(*given: Any, **more: Any) -> Any:
            hours.append(3600)
            return call(*given, **more)

        return lasting

    monkeypatch.setattr(time, "perf_counter", lambda: now() + sum(hours))
    monkeypatch.setattr(TrainStep, "evaluate", an_hour(TrainStep.evaluate))
    monkeypatch.setattr(Saver, "save", an_hour(Saver.save))
    result = go(tiny(corpus, tmp_path, log_interval=1, eval_interval=2, save_interval=3))
    assert len(hours) >= 6
    lines = [line for line in records(tmp_path) if "loss" in line and line["step"] > 1]
    speeds = [result.tokens_per_second, *(line["tokens_per_second"] for line in lines)]
    assert all(speed is not None and speed > 8 * 32 / 1800 for speed in speeds)


def test_a_run_that_cannot_note_its_end_has_ended_all_the_same(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class AtTheEnd(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            if self.asked == 9:
                (tmp_path / "status.json").unlink()
                (tmp_path / "status.json").mkdir()
            return False

    result = go(tiny(corpus, tmp_path, async_save=False), stop=AtTheEnd())
    assert (result.step, result.verdict) == (8, "done")
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 2  # of the save, and of the end
    assert "step-00000008 is saved, but" in told[0]
    assert "status.json: is not a regular file" in told[1]
    assert not storage.verify(Path(result.checkpoint))


@pytest.mark.parametrize(("ranks", "ended"), [(1, StoppedError), (2, ConfigError)])
def test_one_process_stops_at_once_before_the_first_step_and_ranks_only_together(
    ranks: int,
    ended: type[Exception],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def signalled(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise ConfigError("went on")

    monkeypatch.setattr(loop, "make_plan", signalled)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        stop = StopRequest().listen()
        with pytest.raises(ended):
            train(tiny(corpus, tmp_path), replace(ONE, size=ranks), stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
