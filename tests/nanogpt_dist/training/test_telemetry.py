"""What a run's time goes to, which rank the others wait for, and what its events are."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_dist import api
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data.batches import Prefetcher
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError, StoppedError, StorageError
from nanogpt_dist.inspect.run_record import read_run
from nanogpt_dist.inspect.standing import standing
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training import saver as saver_module
from nanogpt_dist.training import step as step_module
from nanogpt_dist.training.gpu_sensors import GpuSensors
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.telemetry import shares
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, events_of, go, records, tiny

KEYS = {
    *("time", "interval_s", "data_s", "communication_s", "save_s", "eval_s"),
    *("memory_reserved_bytes", "gpu_temperature_c", "gpu_clock_mhz"),
    *("slowest_rank", "slowest_host", "slowest_factor", "expected_tokens_per_second"),
}


def logged(run: Path) -> list[dict[str, Any]]:
    return [line for line in records(run) if "loss" in line]


def test_a_line_says_what_its_time_went_to(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get, save, evaluate = Prefetcher.get, saver_module.Saver.save, step_module.TrainStep.evaluate

    def late(function: Any, seconds: float) -> Any:
        def called(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments, **named)

        return called

    monkeypatch.setattr(Prefetcher, "get", late(get, 0.01))
    monkeypatch.setattr(saver_module.Saver, "save", late(save, 0.02))
    monkeypatch.setattr(step_module.TrainStep, "evaluate", late(evaluate, 0.04))
    before = time.time()
    go(tiny(corpus, tmp_path / "a", log_interval=2, eval_interval=2))
    lines = logged(tmp_path / "a")
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8]
    for line in lines:
        assert line.keys() >= KEYS
        parts = [line[key] for key in ("data_s", "communication_s", "save_s", "eval_s")]
        assert sum(parts) < line["interval_s"]
        assert before - 1 < line["time"] < time.time() + 1
    for line in lines[2:]:  # two steps, and between them what followed step 2, 4, 6
        assert line["data_s"] >= 0.02
        assert line["save_s"] >= 0.02
        assert line["eval_s"] >= 0.04
    assert lines[1]["save_s"] == lines[1]["eval_s"] == 0  # what comes after it counts with the next
    assert all("time" in line for line in records(tmp_path / "a"))


def test_each_line_says_how_fast_it_should_be(corpus: Path, tmp_path: Path) -> None:
    asked = []

    def expect(config: TrainConfig, layout: Layout, world: World) -> float:
        asked.append((layout.strategy, world.size))
        return 1234.5

    config = tiny(corpus, tmp_path / "a", log_interval=2)
    train(config, ONE, StopRequest(), expect=expect)
    assert asked == [("single", 1)]  # once
    assert {line["expected_tokens_per_second"] for line in logged(tmp_path / "a")} == {1234.5}
    assert standing(read_run(tmp_path / "a"), 0)["expected_tokens_per_second"] == 1234.5
    api.train(tiny(corpus, tmp_path / "b", log_interval=2))  # of a CPU nobody knows
    assert {line["expected_tokens_per_second"] for line in logged(tmp_path / "b")} == {None}


def test_one_rank_waits_for_nobody(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "a", log_interval=2))
    for line in logged(tmp_path / "a"):
        assert line["communication_s"] == 0
        assert line["slowest_rank"] is line["slowest_host"] is line["slowest_factor"] is None
        assert line["gpu_temperature_c"] is line["memory_reserved_bytes"] is None  # a CPU's


def test_boards_get_the_numbers_alone(corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(tiny(corpus, tmp_path / "a", log_interval=2, tensorboard=True))
    board = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert tags >= {"train/data_s", "train/interval_s", "train/save_s", "val/val_loss"}
    assert not tags & {"train/time", "val/time", "train/slowest_host"}


@pytest.mark.parametrize(
    ("strategy", "how"),
    [
        ("ddp", "paused"),
        pytest.param("fsdp", "paused", marks=pytest.mark.thorough),
        pytest.param("ddp", "disk", marks=pytest.mark.thorough),
        pytest.param("fsdp", "disk", marks=pytest.mark.thorough),
    ],
)
def test_a_rank_that_is_slowed_is_named(
    corpus: Path,
    tmp_path: Path,
    strategy: str,
    how: str,
) -> None:
    run = tmp_path / "a"
    told = in_ranks("slowed", 2, strategy, how, corpus, run)
    (event,) = [event for event in events_of(run) if event["event"] == "straggler"]
    assert event["rank"] == 1
    assert event["host"] == os.uname().nodename
    assert event["factor"] > 1.2
    assert told.count(f"the others wait for rank 1 on {event['host']}") == 1
    lines = [line for line in logged(run) if line["slowest_rank"] is not None]
    assert sum(line["slowest_rank"] for line in lines) > len(lines) / 2
    assert all(line["communication_s"] >= 0 for line in lines)
    if how == "disk":
        assert lines[-1]["data_s"] > lines[-1]["interval_s"] / 4


def test_events_tell_the_story_of_a_run(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    stop = StopRequest()
    config = tiny(corpus, run, log_interval=2)
    go(config)
    go(config.model_copy(update={"max_iters": 12}))
    go(config.model_copy(update={"max_iters": 12}))  # is finished: no more of it
    told = [(event["event"], event["step"]) for event in events_of(run)]
    first = [("start", 0), ("save", 4), ("save", 8), ("done", 8)]
    assert told == [*first, ("resume", 8), ("save", 12), ("done", 12)]
    saved = events_of(run)[-2]
    folder = run / "checkpoints" / "step-00000012"
    assert saved["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert saved["seconds"] > 0
    stop.ask()
    with pytest.raises(StoppedError):
        go(config.model_copy(update={"max_iters": 16}), stop=stop)
    assert events_of(run)[-1]["event"] == "stop"


def test_a_failure_is_an_event_once_and_a_skipped_step_is_one(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_module.TrainStep, "_clip_gradient", lambda _: torch.tensor(torch.nan))
    with pytest.raises(ConfigError, match="no finite gradient"):
        go(tiny(corpus, tmp_path / "a"))
    events = events_of(tmp_path / "a")
    assert [(event["event"], event["step"]) for event in events[:-1]] == [
        ("start", 0),
        *(("skip", step) for step in (1, 2, 3)),
    ]
    assert events[-1]["event"] == "fail"
    assert "no finite gradient" in events[-1]["message"]
    status = json.loads((tmp_path / "a" / "status.json").read_text())
    assert events[-1]["message"] == status["message"]


def test_a_failed_save_is_no_event_of_a_save(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(saver_module.checkpoint, "save", full)
    with pytest.raises(StorageError):
        go(tiny(corpus, tmp_path / "a"))
    assert [event["event"] for event in events_of(tmp_path / "a")] == ["start", "fail"]


def test_sensors_are_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "temperature", lambda device: asked.append(device) or 61)
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda _: 1755)
    sensors = GpuSensors(torch.device("cuda", 0))
    assert [sensors.read() for _ in range(3)] == [(61, 1755)] * 3
    assert len(asked) == 1
    assert GpuSensors(torch.device("cpu")).read() == (None, None)


def test_sensors_that_are_not_there_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(_: Any) -> int:
        asked.append(1)
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "temperature", missing)
    sensors = GpuSensors(torch.device("cuda", 0))
    assert [sensors.read() for _ in range(3)] == [(None, None)] * 3
    assert len(asked) == 1


def test_the_terminal_is_told_of_large_shares_only() -> None:
    figures = {"interval_s": 10.0, "data_s": 1.2, "communication_s": None, "save_s": 0.5}
    assert shares(figures) == " · data 12%"
    assert shares({**figures, "communication_s": 3.0, "save_s": 0.6}) == (
        " · data 12% · comm 30% · save 6%"
    )
