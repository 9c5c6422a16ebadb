"""A disk without room for the next checkpoints: told before a model is built, and at each save."""

import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import MAX_LINE, StorageError
from nanogpt_dist.training import loop
from nanogpt_dist.training.disk_room import checkpoint_size, most_kept, saved_steps
from nanogpt_dist.training.plan import fit_to_data
from nanogpt_dist.training.saver import due
from nanogpt_dist.training.step import TrainStep
from tests.faults.disk import FailingDisk
from tests.nanogpt_dist.small import go, tiny

Free = Callable[[float], None]


@pytest.fixture
def free(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Free:
    """free(N): from now on the disk says that it has room for N checkpoints of a run of tiny()."""
    size = checkpoint_size(fit_to_data(tiny(corpus, tmp_path), DataFolder.open(corpus)))

    def say(count: float) -> None:
        left = int(count * size)
        numbers = SimpleNamespace(f_blocks=10**9, f_bfree=left, f_bavail=left, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda path: numbers)

    return say


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema_decay": 0.9}, {"optimizer": "muon"}, {"vocab_size": 384, "bias": False}],
)
def test_a_checkpoint_is_as_large_as_is_said_before(
    changes: dict[str, Any],
    corpus: Path,
    tmp_path: Path,
) -> None:
    last = Path(go(tiny(corpus, tmp_path, max_iters=1, warmup_iters=0, **changes)).checkpoint)
    tensors = [each for path in last.glob("*.safetensors") for each in load_file(path).values()]
    held = sum(each.nbytes for each in tensors if each.ndim)  # a step counter has no dimension
    assert held == checkpoint_size(checkpoint.load_config(last))


def test_a_run_without_room_for_one_checkpoint_ends_before_its_model_is_built(
    corpus: Path,
    tmp_path: Path,
    free: Free,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "build", lambda *rest: pytest.fail("the model is built"))
    free(0.99)
    for _ in range(5):  # no attempt that counts: the fifth says the same
        with pytest.raises(StorageError, match=r"disk full: a checkpoint takes .* --out-dir") as no:
            go(tiny(corpus, tmp_path / ("x" * 100)))
        assert len(str(no.value)) <= MAX_LINE


def test_a_run_whose_files_are_limited_ends_before_its_model_is_built(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = max(
        path.stat().st_size for path in Path(go(tiny(corpus, tmp_path)).checkpoint).iterdir()
    )
    monkeypatch.setattr(loop, "build", lambda *rest: pytest.fail("the model is built"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(StorageError, match=r"ulimit -f allows [0-9,]+; type ulimit -f unlim"):
            go(tiny(corpus, tmp_path, max_iters=9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("room", "settings", "told"),
    [
        (4, {}, None),  # the newest two, the best, and the one that is written
        (3.99, {}, "4 more checkpoints take .* free at .*; make room, or type another --out-dir"),
        (2, {"max_iters": 8, "save_interval": 4}, None),
        (4, {"keep_checkpoints": 3}, "5 more .*; make room, lower --keep-checkpoints, or type"),
        (9, {"keep_every": 4}, None),
        (8.99, {"keep_every": 4}, "9 more checkpoints"),
    ],
)
def test_a_run_without_room_for_all_that_is_kept_is_warned(
    room: float,
    settings: dict[str, Any],
    told: str | None,
    corpus: Path,
    tmp_path: Path,
    free: Free,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free(room)
    go(tiny(corpus, tmp_path, **{"max_iters": 20, "save_interval": 2, **settings}))
    lines = [line for line in capsys.readouterr().err.splitlines() if "more checkpoints" in line]
    assert len(lines) == (told is not None)
    if told is not None:
        assert re.search(told, lines[0])
        assert len(lines[0]) <= MAX_LINE


def test_what_is_on_the_disk_already_needs_no_room(
    corpus: Path,
    tmp_path: Path,
    free: Free,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free(9)
    go(tiny(corpus, tmp_path, max_iters=8, save_interval=2))
    kept = len(storage.list_steps(tmp_path / "checkpoints"))
    free(4 - kept)
    go(tiny(corpus, tmp_path, max_iters=16, save_interval=2))
    free(0)
    assert go(tiny(corpus, tmp_path, max_iters=16, save_interval=2)).step == 16, "it is finished"
    assert "more checkpoints" not in capsys.readouterr().err


@pytest.fixture
def full_at(free: Free, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FailingDisk]:
    """full_at(5, 6): the disk is full when these steps are saved; it tells what was written."""
    saving, disk = checkpoint.save, FailingDisk()

    def begin(*steps: int) -> FailingDisk:
        def save(world: Any, folder: Path, mine: Any, *rest: Any) -> Path:
            free(0.5 if mine.state.step in steps else 9)
            with disk.watch():
                return saving(world, folder, mine, *rest)

        free(9)
        monkeypatch.setattr(checkpoint, "save", save)
        return disk

    return begin


def test_a_save_without_room_writes_nothing_and_training_goes_on(
    corpus: Path,
    tmp_path: Path,
    full_at: Callable[..., FailingDisk],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = full_at(5, 6, 9, 10)
    config = tiny(corpus, tmp_path, max_iters=12, eval_interval=12, save_interval=1)
    go(config.model_copy(update={"keep_checkpoints": 99, "async_save": False}))
    err = capsys.readouterr().err
    assert err.count("training goes on; the last good one is step-00000004: disk full: ") == 2
    assert err.count("training goes on; the last good one is step-00000008: disk full: ") == 2
    saved = {storage.step_of(path.name) for path in storage.list_steps(tmp_path / "checkpoints")}
    assert saved == set(range(1, 13)) - {5, 6, 9, 10}
    assert [each for each in disk.operations if "step-00000004" in each[1]]
    assert not [each for each in disk.operations if "step-00000005" in each[1]]


@pytest.mark.parametrize("beside", [False, True])
def test_the_third_save_without_room_in_a_row_ends_the_run(
    beside: bool,
    corpus: Path,
    tmp_path: Path,
    full_at: Callable[..., FailingDisk],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    update, made = TrainStep.step, []

    def step(self: TrainStep, number: int, *rest: Any) -> Any:
        made.append(number + 1)
        return update(self, number, *rest)

    monkeypatch.setattr(TrainStep, "step", step)
    full_at(*range(5, 99))
    config = tiny(corpus, tmp_path, save_interval=2, eval_interval=99, max_iters=99)
    told = r"disk full: .*step-00000010 needs at least [0-9,]+ bytes"
    with pytest.raises(StorageError, match=told):
        go(config.model_copy(update={"async_save": beside}))
    assert capsys.readouterr().err.count("the last good one is step-00000004") == 2
    assert 10 <= made[-1] <= 12, "the next save hears of it, if not the next step"
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000004", "latest"}


def test_the_last_save_has_to_succeed_at_once_and_the_one_before_stays(
    corpus: Path,
    tmp_path: Path,
    full_at: Callable[..., FailingDisk],
) -> None:
    full_at(8)
    with pytest.raises(StorageError, match=r"disk full: .*step-00000008 needs at least"):
        go(tiny(corpus, tmp_path))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["code"], status["checkpoint"]) == (74, "step-00000004")
    full_at()
    assert go(tiny(corpus, tmp_path)).step == 8


def test_of_many_saves_so_many_are_left() -> None:
    config = tiny(Path("data"), Path("run"), max_iters=100, eval_interval=30, save_interval=7)
    for settings in ({}, {"always_save_checkpoint": False}, {"schedule": "wsd"}):
        config = config.model_copy(update=settings)
        for after in (0, 1, 7, 29, 30, 89, 99):
            steps = range(after + 1, 100)
            saves = sum(due(config, step, step % 30 == 0, improved=True) for step in steps)
            assert saved_steps(config, after) == saves + 1
    assert most_kept(config, 3) == 3
    assert most_kept(config, 99) == 4
