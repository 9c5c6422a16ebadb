"""A run folder read from its files alone: live, torn, old, foreign."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist.errors import MissingInputError
from nanogpt_dist.inspect import run_record
from nanogpt_dist.inspect.run_record import RunReader, RunRecord, read_run, runs_in
from nanogpt_dist.storage import json_lines, run_folder
from nanogpt_dist.storage.events import note_event
from tests.nanogpt_dist.small import go, records, tiny


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a"
    go(tiny(corpus, run, log_interval=1))
    return run


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "a")


def test_a_finished_run_is_read_whole(done: Path) -> None:
    read = read_run(done)
    assert (read.name, read.verdict, read.step, read.max_iters) == ("a", "done", 8, 8)
    assert [line["step"] for line in read.train] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in read.val] == [4, 8]
    assert [path.name for path in read.checkpoints] == ["step-00000008", "step-00000004"]
    assert read.about["pid"] == os.getpid()
    assert read.status["code"] == 0
    steps, losses = read.series("loss")
    assert losses.tolist() == [one["loss"] for one in records(done) if "loss" in one]
    assert read.last("val_loss") == read.series("val_loss")[1][-1]
    assert read.tokens == 8 * 8 * 32
    assert read.tokens_at(steps[:2]).tolist() == [256.0, 512.0]  # type: ignore[union-attr]


def test_what_grows_is_read_on_and_what_is_torn_waits(run: Path) -> None:
    reader = RunReader(run)
    first = reader.read()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "loss": 1.5')
        file.flush()
        assert reader.read().train == first.train
        file.write(b', "mfu": null}\nno json\n{"step": 10, "loss": null}\n[1]\n{"step": "x"}\n')
    after = reader.read()
    assert [line["step"] for line in after.train[-2:]] == [9, 10]
    assert after.series("loss")[0][-1] == 9  # what is no number is left out of a curve
    assert len(first.train) == 8  # a record does not change any more
    assert after.step == 10


def test_a_record_that_was_cut_at_a_resume_is_read_anew(run: Path) -> None:
    reader = RunReader(run)
    reader.read()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + lines[4].replace(b"5", b"6"))
    assert RunReader(run).read().train == reader.read().train != ()


def test_steps_that_were_made_again_count_once(run: Path) -> None:
    again = [{"step": 7, "loss": 9.0}, {"step": 8, "loss": 9.5}, {"step": 8, "val_loss": 8.5}]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in again)
    read = read_run(run)
    assert [line["step"] for line in read.train] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read.series("loss")[1][-2:].tolist() == [9.0, 9.5]
    assert read.series("val_loss")[1][-1] == 8.5


def test_a_run_of_which_little_is_left_is_read(run: Path) -> None:
    (run / "config.toml").write_text("max_iters = 'many'")
    for name in ("status.json", "run.json"):
        (run / name).write_text('{"step": ')
    shutil.rmtree(run / "checkpoints")
    (run / "events.jsonl").write_text('{"event": "save"}\n')
    note_event(run, "stop", 8)
    read = read_run(run)
    assert (read.config, read.max_iters, read.status, read.about) == (None, None, {}, {})
    assert "max_iters" in read.problem
    assert read.verdict is None
    assert read.checkpoints == ()
    assert [event["event"] for event in read.events] == ["stop"]
    assert read.tokens == 8 * 8 * 32  # as the logged steps say
    for name in ("config.toml", "status.json", "run.json", "events.jsonl"):
        (run / name).unlink()
    assert read_run(run).step == 8


def test_what_is_no_run_is_told(run: Path, corpus: Path) -> None:
    for folder, message in [
        (run / "nowhere", "does not exist; give a run"),
        (corpus, "is no run: it has no run.json and metrics.jsonl"),
        (run / "checkpoints" / "step-00000008", "is a checkpoint; give its run: "),
    ]:
        with pytest.raises(MissingInputError, match=message):
            read_run(folder)


def test_a_folder_that_is_removed_meanwhile_is_told(run: Path) -> None:
    reader = RunReader(run)
    reader.read()
    shutil.rmtree(run)
    with pytest.raises(MissingInputError, match="does not exist"):
        reader.read()


def test_runs_are_found_by_what_they_wrote(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.toml").touch()  # anybody's
    (tmp_path / "file").touch()
    assert runs_in(tmp_path) == [run] == runs_in(run)
    assert runs_in(tmp_path / "nowhere") == []


def test_a_run_elsewhere_whose_lock_is_not_seen_runs_while_it_writes(run: Path) -> None:
    run_folder.write_status(run, run_folder.Status("running", 8, None))
    assert read_run(run).verdict == "killed"
    about = run_folder.read_json(run / "run.json")
    run_folder.write_json(run / "run.json", {**about, "host": "node-7"})
    assert read_run(run).verdict == "running"
    long_ago = (run / "metrics.jsonl").stat().st_mtime - run_record.SILENT_S - 60
    for path in run.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert read_run(run).verdict == "killed"


def test_a_run_elsewhere_with_long_intervals_may_be_silent_for_long(run: Path) -> None:
    run_folder.write_status(run, run_folder.Status("running", 8, None))
    about = run_folder.read_json(run / "run.json")
    run_folder.write_json(run / "run.json", {**about, "host": "node-7"})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0, "interval_s": 100.0}\n')
    now = time.time()

    def written(seconds_ago: float, *names: str) -> RunRecord:
        for path in run.iterdir():
            at = now - (seconds_ago if path.name in names or not names else 5000)
            os.utime(path, (at, at))
        return read_run(run)

    assert (written(900).verdict, written(900).is_silent) == ("running", False)
    assert (written(1100).verdict, written(1100).is_silent) == ("killed", True)
    for name in ("events.jsonl", "checkpoints"):
        assert written(900, name).verdict == "running"


def test_what_is_new_is_added_to_what_was_read(run: Path) -> None:
    reader = RunReader(run)
    first = reader.read()
    assert reader.read().train is first.train, "nothing is gone through again"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 9.0}\n')
    assert [line["step"] for line in reader.read().train] == [1, 2, 3, 4, 5, 6]
    assert reader.read().train[0] is first.train[0]
    assert reader.read().train == read_run(run).train
    keys = [[key for key in line if key == "tokens"] for line in first.train]
    assert len({id(key) for [key] in keys}) == 1, "each key is kept once"


def test_blocks_that_end_within_lines_are_read_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_run(run)
    monkeypatch.setattr(json_lines, "BLOCK", 7)
    assert (read_run(run).train, read_run(run).val) == (whole.train, whole.val)


def test_a_run_that_cannot_be_read_hides_no_other(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").mkdir()
    is_run = run_record.is_run

    def refusing(folder: Path) -> bool:
        if folder.name == "0":
            raise PermissionError(13, "Permission denied")
        return is_run(folder)

    monkeypatch.setattr(run_record, "is_run", refusing)
    assert runs_in(tmp_path) == [run]


def test_a_figure_that_nobody_wrote_is_an_empty_series(done: Path) -> None:
    steps, values = read_run(done).series("no_such_figure")
    assert steps.dtype == np.int64
    assert values.shape == steps.shape == (0,)
