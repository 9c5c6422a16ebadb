"""Where a run goes on, when it refuses to, and that stopping and killing it change no bit of its
end.
"""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch import processes
from nanogpt_dist import storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, MissingInputError
from nanogpt_dist.evaluation.loss import spread
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.resume import (
    ResumePoint,
    find_start,
    forget_lost_best,
    forget_other_best,
)
from tests.conftest import TINY, Run, build, command, in_ranks
from tests.nanogpt_dist.small import ONE, STEPS, go, records, tiny, weights_sha256


def test_a_finished_run_is_left_alone_and_goes_further_on_demand(
    corpus: Path,
    tmp_path: Path,
) -> None:
    first = go(tiny(corpus, tmp_path / "run", decay_lr=False))
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(first.checkpoint).iterdir())
    again = go(tiny(corpus, tmp_path / "run", decay_lr=False))
    assert (again.step, again.val_loss) == (first.step, first.val_loss)
    assert (
        sorted((path, path.stat().st_mtime_ns) for path in Path(first.checkpoint).iterdir())
        == before
    )
    assert go(tiny(corpus, tmp_path / "run", max_iters=12, decay_lr=False)).step == 12
    whole = go(tiny(corpus, tmp_path / "whole", max_iters=12, decay_lr=False))
    assert weights_sha256(tmp_path / "run", 12) == weights_sha256(tmp_path / "whole", 12)
    assert whole.step == 12


RAMPS = {"batch_ramp": "0:4,5:8,9:16", "context_ramp": "0:8,3:16,7:32"}


@pytest.mark.parametrize("at", [2, 3, 6, 9])
def test_a_run_with_ramps_ends_the_same_wherever_it_was_stopped(
    corpus: Path,
    tmp_path: Path,
    at: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {**RAMPS, "max_iters": 12, "lr_decay_iters": 12, "log_interval": 1, "dropout": 0.1}
    whole = go(tiny(corpus, tmp_path / "whole", **settings))
    assert whole.tokens == 3 * 4 * 8 + 2 * 4 * 16 + 2 * 8 * 16 + 2 * 8 * 32 + 3 * 16 * 32
    go(tiny(corpus, tmp_path / "run", **{**settings, "max_iters": at}))
    capsys.readouterr()
    assert go(tiny(corpus, tmp_path / "run", **settings)).tokens == whole.tokens
    assert weights_sha256(tmp_path / "run", 12) == weights_sha256(tmp_path / "whole", 12)
    one, other = (
        {r["step"]: r["loss"] for r in records(tmp_path / run) if "loss" in r}
        for run in ("whole", "run")
    )
    assert one == other
    told = capsys.readouterr().err
    assert "from step 5 on 128 tokens a step = 1 rank × 2 micro-batches × 4 sequences × 16" in told
    assert "from step 9 on 512 tokens a step = 1 rank × 4 micro-batches × 4 sequences × 32" in told


def test_fresh_never_destroys(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"), fresh=True)
    with pytest.raises(CannotCreateError, match="--fresh needs another --out-dir"):
        go(tiny(corpus, tmp_path / "run"), fresh=True)


def test_a_lost_checkpoint_is_never_taken_for_a_new_run(corpus: Path, tmp_path: Path) -> None:
    result = go(tiny(corpus, tmp_path / "run"))
    for step in storage.list_steps(tmp_path / "run" / "checkpoints"):
        step.rename(tmp_path / step.name)
    with pytest.raises(
        MissingInputError, match=f"lost its checkpoint {Path(result.checkpoint).name}"
    ):
        go(tiny(corpus, tmp_path / "run"))
    assert go(tiny(corpus, tmp_path / "run"), fresh=True).step == 8


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path / "whole", dropout=0.1, max_iters=12))
    go(tiny(corpus, tmp_path / "run", dropout=0.1, max_iters=12))
    newest = tmp_path / "run" / "checkpoints" / storage.step_name(12) / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert go(tiny(corpus, tmp_path / "run", dropout=0.1, max_iters=12)).step == 12
    assert weights_sha256(tmp_path / "run", 12) == weights_sha256(tmp_path / "whole", 12)
    assert len(list((tmp_path / "run" / "checkpoints").glob(".bad-*"))) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layer": 3}, "n_layer 2"),
        ({"seed": 7}, "seed 1337"),
        ({"batch_size": 8}, "global_batch_size 8"),
        ({"batch_ramp": "0:4,2:8"}, "batch_ramp None"),
        ({"context_ramp": "0:16,2:32"}, "context_ramp None"),
    ],
)
def test_another_architecture_or_order_of_data_is_refused(
    corpus: Path,
    tmp_path: Path,
    change: dict[str, object],
    words: str,
) -> None:
    go(tiny(corpus, tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"holds a run with {words} .*give another --out-dir"):
        go(tiny(corpus, tmp_path / "run", **change))


def test_other_ranks_and_settings_are_noted(trained: Path) -> None:
    """What a resumed run will not do bit by bit as it began, and nothing else."""
    start = ResumePoint.read(trained / "checkpoints" / storage.step_name(8))
    assert start.notes(start.config, ONE) == []
    moved = replace(start, facts={**start.facts, "world_size": 2})
    changed = start.config.model_copy(update={"eval_iters": 3})
    assert moved.notes(changed, ONE) == [
        "not as the checkpoint had it: eval_iters 2 (now 3)",
        "world_size 2 (now 1): the same tokens in the same order, rounded otherwise",
    ]


def test_other_data_is_refused(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"))
    (tmp_path / "other.txt").write_text("to be or not to be\n" * 2000, encoding="utf-8")
    build("text", tmp_path / "other", sources=[tmp_path / "other.txt"], tokenizer="byte", workers=1)
    with pytest.raises(BadDataError, match="was trained on data set"):
        go(tiny(tmp_path / "other", tmp_path / "run"))


def test_a_second_run_on_the_same_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        storage.RunLock(tmp_path / "run"),
        pytest.raises(CannotCreateError, match=str(os.getpid())),
    ):
        go(tiny(corpus, tmp_path / "run"))


def test_a_mistake_leaves_the_status_of_a_finished_run(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"))
    before = (tmp_path / "run" / "status.json").read_bytes()
    with pytest.raises(ConfigError):
        go(tiny(corpus, tmp_path / "run", n_layer=1))
    assert (tmp_path / "run" / "status.json").read_bytes() == before


def test_tensorboard_reads_the_scalars_of_a_stopped_and_resumed_run(
    corpus: Path,
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(corpus, tmp_path / "run", tensorboard=True, log_interval=1, save_interval=3)

    class AtFive(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked > 5  # the run looks once before its first update, then after each

    stopped = go(config, stop=AtFive())
    assert (stopped.step, stopped.verdict) == (5, "stopped")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["verdict"] == "stopped"
    assert go(config).verdict == "done"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "memory_bytes"}
    assert {f"train/{name}" for name in wanted} | {"val/val_loss"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))
    recorded = {
        record["step"]: record["loss"] for record in records(tmp_path / "run") if "loss" in record
    }
    for event in board.Scalars("train/loss"):
        assert event.value == pytest.approx(recorded[event.step])


def test_a_best_loss_over_other_windows_is_compared_no_more(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    go(tiny(corpus, tmp_path, max_iters=4, eval_interval=2))
    result = go(
        tiny(corpus, tmp_path, max_iters=8, eval_interval=4, eval_iters=3, learning_rate=2e-3)
    )
    told = capsys.readouterr().err
    assert "eval_interval 2 (now 4), eval_iters 2 (now 3)" in told
    assert "was over 8 windows of the val split, from here on it is over 12" in told
    assert result.best_val_loss == result.val_loss
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()  # the best until then is not lost


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_stopped_and_killed_runs_end_with_the_weights_of_an_undisturbed_one(
    corpus: Path,
    tmp_path: Path,
    nanogpt: Run,
    ranks: int,
) -> None:
    flags = [
        *TINY,
        "--dataset",
        corpus,
        "--max-iters",
        STEPS,
        "--save-interval",
        4,
        "--dropout",
        "0.1",
        "--no-tensorboard",
        "--json",
    ]
    nanogpt("train", *flags, "--out-dir", "whole", ranks=ranks)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        out = tmp_path / sign.name
        seed = random.randrange(10**6)
        code, told = stop_at_a_random_step(
            command("train", *flags, "--out-dir", out, ranks=ranks), out, sign, seed
        )
        if sign == signal.SIGTERM and not ranks:  # torchrun returns 1 whatever its ranks return
            assert code == {"stopped": 75, "done": 0}[json.loads(told)["verdict"]], f"seed {seed}"
        nanogpt("train", *flags, "--out-dir", out, ranks=ranks)
        assert weights_sha256(out) == weights_sha256(tmp_path / "whole"), (
            f"{sign.name}, seed {seed}"
        )


def stop_at_a_random_step(
    line: list[str],
    out: Path,
    sign: signal.Signals,
    seed: int,
) -> tuple[int, str]:
    """Start `line`, wait for its first checkpoint and a while more, send `sign` to all its
    processes.

    Returns the exit code and what stood on stdout.
    """
    mark = {"NANOGPT_TEST": str(out)}
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **mark},
        start_new_session=True,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not storage.list_steps(out / "checkpoints"):
        assert process.poll() is None, "it ended before the first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.Random(seed).random() * 0.3)
    if sign == signal.SIGTERM:
        process.terminate()
    else:
        # torchrun's ranks have sessions of their own
        while left := processes.marked("NANOGPT_TEST", str(out)):
            processes.send(signal.SIGKILL, left)
    told, _ = process.communicate(timeout=60)
    return process.returncode, told


def test_ranks_that_see_other_files_start_at_one_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """As on a disk that shows new names late to other machines."""
    in_ranks("lagging", 2, corpus, tmp_path / "run")
    assert weights_sha256(tmp_path / "run", 12)


def test_a_rank_that_sees_the_chosen_checkpoint_late_waits_for_it(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = trained / "checkpoints" / storage.step_name(8)
    hidden = chosen.rename(trained / chosen.name)
    monkeypatch.setattr(World, "broadcast_text", lambda self, text: chosen.name)
    run = OpenRun(trained, replace(ONE, rank=1), SimpleNamespace())  # type: ignore[arg-type]
    plan: Any = SimpleNamespace(config=tiny(trained, trained))
    appears = threading.Timer(0.5, hidden.rename, [chosen])
    appears.start()
    start = find_start(run, plan, fresh=False, console=Console(enabled=False))
    appears.join()
    assert start is not None
    assert (start.path, start.state.step) == (chosen, 8)


def test_an_imported_run_may_go_on_with_any_data_of_its_ids(trained: Path, corpus: Path) -> None:
    start = ResumePoint.read(trained / "checkpoints" / storage.step_name(8))
    data = DataFolder.open(corpus)
    assert start.origin is None
    start.refuse_another_run(start.config, data)
    elsewhere = replace(start, facts={**start.facts, "dataset_id": "f" * 64})
    with pytest.raises(
        BadDataError, match=f"trained on data set f{{12}}, .* is {data.dataset_id[:12]};"
    ):
        elsewhere.refuse_another_run(start.config, data)
    imported = replace(start, facts={**elsewhere.facts, "imported_from": "gpt2"})
    assert imported.origin == "gpt2"
    imported.refuse_another_run(start.config, data)
    other = replace(start, facts={**imported.facts, "tokenizer_fingerprint": "0"})
    with pytest.raises(
        BadDataError, match=r"step-00000008 \(gpt2\) has other ids than .*; give another"
    ):
        other.refuse_another_run(start.config, data)
    begun = replace(start, facts={"began_from": "mine", "imported_from": "gpt2"})
    assert begun.origin == "mine"


def test_what_ranks_and_threads_were_is_noted_where_it_is_known(trained: Path) -> None:
    start = ResumePoint.read(trained / "checkpoints" / storage.step_name(8))
    threads = torch.get_num_threads()
    moved = replace(start, facts={"threads_per_rank": threads + 1})
    assert moved.notes(start.config, ONE) == [
        f"threads_per_rank {threads + 1} (now {threads}): the same tokens in the same order, "
        "rounded otherwise"
    ]
    assert replace(start, facts={}).notes(start.config, ONE) == []


def test_what_dead_attempts_left_is_cleared_at_the_start(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".tmp-status.json-01234567", tmp_path / "checkpoints" / ".trash-x-01234567"]
    for path in left:
        path.touch()
    go(tiny(corpus, tmp_path, max_iters=1, warmup_iters=0))
    assert not any(path.exists() for path in left)


def test_a_run_resumed_where_its_decay_starts_pins_that(corpus: Path, tmp_path: Path) -> None:
    values = {"schedule": "wsd", "decay_fraction": 0.5, "warmup_iters": 0}
    go(tiny(corpus, tmp_path, max_iters=4, **{**values, "schedule": "constant"}))
    go(tiny(corpus, tmp_path, max_iters=8, keep_checkpoints=2, save_interval=1, **values))
    assert storage.read_pins(tmp_path / "checkpoints") == {storage.step_name(4)}
    steps = [path.name for path in storage.list_steps(tmp_path / "checkpoints")]
    assert storage.step_name(4) in steps


@pytest.mark.parametrize(("there", "best"), [(7, 7), (0, 0), (7, 6), (7, None), (None, 7)])
def test_a_best_that_is_gone_is_forgotten(
    there: int | None, best: int | None, tmp_path: Path
) -> None:
    if there is not None:
        (tmp_path / storage.step_name(there)).mkdir()
    run: Any = SimpleNamespace(world=ONE, checkpoints=tmp_path)
    state = TrainState(step=9, best_step=best, best_val_loss=2.0)
    forget_lost_best(run, state)
    kept = best is not None and there == best
    assert (state.best_step, state.best_val_loss) == ((best, 2.0) if kept else (None, None))


@pytest.mark.parametrize(
    ("windows", "best_step", "note"),
    [
        (6, 4, None),
        (7, 4, "the best val loss so far, 2.0000 at step 4, was over 6 windows .* it is over 7"),
        (7, None, None),
    ],
)
def test_a_best_is_compared_over_the_same_windows_only(
    windows: int, best_step: int | None, note: str | None
) -> None:
    evaluator: Any = SimpleNamespace(
        split=SimpleNamespace(tokens=1000), windows=spread(1000, 16, windows)
    )
    config = resolve({"block_size": 16, "eval_iters": 2, "batch_size": 3})
    start: Any = SimpleNamespace(config=config)
    loss = None if best_step is None else 2.0
    state = TrainState(step=9, best_step=best_step, best_val_loss=loss)
    told = forget_other_best(start, state, evaluator)
    if note is None:
        assert told is None
        assert (state.best_step, state.best_val_loss) == (best_step, loss)
    else:
        assert re.search(note, str(told))
        assert (state.best_step, state.best_val_loss) == (None, None)
