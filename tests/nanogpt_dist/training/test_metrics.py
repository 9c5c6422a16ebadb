"""The record of a run: strict JSON, cut where a run goes on, and patient with a full disk."""

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest

from nanogpt_dist.config import resolve
from nanogpt_dist.errors import StorageError
from nanogpt_dist.training.metrics import (
    RECORD,
    Console,
    Recorder,
    cut_record,
    duration,
    put_before_now,
)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path, 0, resolve({"tensorboard": False}), console=Console(enabled=True))


def lines(run: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [
        json.loads(line, parse_constant=refuse) for line in (run / RECORD).read_text().splitlines()
    ]


def test_a_number_that_json_does_not_have_is_null(recorder: Recorder, tmp_path: Path) -> None:
    recorder.log_step(
        {"step": 1, "loss": math.nan, "grad_norm": math.inf, "tokens_per_second": None, "mfu": 0.5},
        "",
    )
    assert lines(tmp_path) == [
        {"step": 1, "loss": None, "grad_norm": None, "tokens_per_second": None, "mfu": 0.5}
    ]


def test_lines_wait_while_the_disk_is_full(
    recorder: Recorder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = recorder._record
    recorder.log_step({"step": 1}, "")
    with open("/dev/full", "wb", buffering=0) as full:
        recorder._record = full
        recorder.log_step({"step": 2}, "")
        recorder.log_step({"step": 3}, "")
    recorder._record = real
    recorder.log_step({"step": 4}, "")
    recorder.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_what_is_about_to_be_made_again_and_torn_lines_are_cut(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"step": 1}\n{"step": 2, "val_loss": 3.0}\n{"step": 3}\n{"ste')
    cut_record(tmp_path / RECORD, 2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2, "val_loss": 3.0}]


def test_a_blocked_tensorboard_folder_is_one_warning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    recorder = Recorder(tmp_path, 0, resolve({}), console=Console(enabled=True))
    recorder.log_step({"step": 1, "loss": 2.0}, "")
    recorder.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert capsys.readouterr().err.count("TensorBoard") == 1


def test_a_full_disk_ends_tensorboard_with_one_warning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = Recorder(tmp_path, 0, resolve({}), console=Console(enabled=True))
    monkeypatch.setattr(RecordWriter, "write", write)
    for step in range(1, 50):
        recorder.log_step({"step": step, "loss": 2.0}, "")
        time.sleep(0.001)  # its thread needs a turn
    recorder.close()
    assert len(lines(tmp_path)) == 49
    stderr = capsys.readouterr().err
    assert stderr.count("TensorBoard's files cannot be written") == 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((42, "42s"), (187, "3m07s"), (19_200, "5h20m"), (367_200, "4d06h")),
        *((math.inf, "–"), (-math.inf, "–"), (math.nan, "–"), (1e308, "–")),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_clock_that_was_ahead_loses_no_points_of_tensorboard(tmp_path: Path) -> None:
    for name in (
        "events.out.tfevents.0000000050.a.1.0",
        "events.out.tfevents.0000000120.b.1.0",
        "other",
    ):
        (tmp_path / name).touch()
    (tmp_path / "events.out.tfevents.0000000130.c.1.0").touch()
    put_before_now(tmp_path, 100)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split(".")[3:5] for name in kept[:-1]] == [
        ["0000000050", "a"],
        ["0000000098", "b"],
        ["0000000099", "c"],
    ]


@pytest.mark.parametrize("name", [RECORD, "samples.jsonl", "events.jsonl"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_nothing_is_written_behind_a_link_and_a_pipe_is_not_waited_for(
    name: str, kind: str, tmp_path: Path
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(mine)
    if kind == "link":
        mine.write_text('{"step": 9}\n')
    with pytest.raises(StorageError, match=rf"{name} is a link, .*; move it away"):
        Recorder(run, 0, resolve({"tensorboard": False}), Console(enabled=False))
    assert not mine.exists() if kind != "link" else mine.read_text() == '{"step": 9}\n'


def test_a_linked_folder_of_tensorboard_is_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "events.out.tfevents.9999999999.x").touch()
    (tmp_path / "tensorboard").symlink_to(shared)
    put_before_now(tmp_path / "tensorboard", 100)
    assert os.listdir(shared) == ["events.out.tfevents.9999999999.x"]
    put_before_now(shared, 100)
    assert os.listdir(shared) == ["events.out.tfevents.0000000099.x"]


def test_a_line_without_an_end_is_cut_in_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("nanogpt_dist.training.metrics.MOST_BYTES", 64)
    (tmp_path / RECORD).write_bytes(b'{"step": 1}\r\n' + b"x" * 1000 + b'\n{"step": 2}')
    cut_record(tmp_path / RECORD, 2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]
