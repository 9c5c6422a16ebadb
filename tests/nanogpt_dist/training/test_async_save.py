"""Saving beside the training: it goes on meanwhile, and hears of a failure at the next update."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.errors import BadDataError, StorageError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.saver import Saver
from nanogpt_dist.training.step import TrainStep
from tests.conftest import Run, in_ranks
from tests.nanogpt_dist.small import go, tiny

save_checkpoint = checkpoint.save


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Saves before `last` wait for update `release_at`, and fail while `fails`; at_end: (step,
    updates made).
    """
    seen: dict[str, Any] = {"go_on": threading.Event(), "fails": False, "updates": 0, "at_end": []}
    update = TrainStep.step

    def counted(self: TrainStep, step: int, *rest: Any) -> Any:
        seen["updates"] = step + 1
        if seen["release_at"] == step + 1:
            seen["go_on"].set()
        return update(self, step, *rest)

    def slowly(world: Any, folder: Path, mine: Any, *rest: Any) -> Path:
        if mine.state.step < seen["last"]:
            assert seen["go_on"].wait(60)
            seen["at_end"].append((mine.state.step, seen["updates"]))
            if seen["fails"]:
                raise StorageError("disk full: made up")
        return save_checkpoint(world, folder, mine, *rest)

    monkeypatch.setattr(TrainStep, "step", counted)
    monkeypatch.setattr(checkpoint, "save", slowly)
    return seen


def test_training_goes_on_while_a_checkpoint_is_written(
    corpus: Path,
    tmp_path: Path,
    slow: dict[str, Any],
) -> None:
    slow |= {"release_at": 7, "last": 8}
    result = go(tiny(corpus, tmp_path / "run", async_save=True, save_interval=4, eval_interval=8))
    assert result.step == 8
    assert slow["at_end"][0][0] == 4
    assert slow["at_end"][0][1] >= 7, "three updates were made meanwhile"
    steps = [
        storage.step_of(path.name) for path in storage.list_steps(tmp_path / "run" / "checkpoints")
    ]
    assert steps == [8, 4]
    before = storage.verify(tmp_path / "run" / "checkpoints" / storage.step_name(4))
    assert before == []
    state, _ = checkpoint.load_state(tmp_path / "run" / "checkpoints" / storage.step_name(4))
    assert state.step == 4, "the copy is of the step at which it was taken"


def test_a_failure_is_told_at_the_next_update(
    corpus: Path,
    tmp_path: Path,
    slow: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    slow |= {"release_at": 10, "last": 16, "fails": True}
    told: list[int] = []
    finish = Saver.finish

    def noting(self: Saver, *rest: Any) -> None:
        if self.writing is not None:
            told.append(slow["updates"])
        finish(self, *rest)

    monkeypatch.setattr(Saver, "finish", noting)
    go(
        tiny(
            corpus,
            tmp_path / "run",
            async_save=True,
            save_interval=8,
            eval_interval=16,
            max_iters=16,
        )
    )
    assert "not saved at step 8, training goes on: disk full" in capsys.readouterr().err
    assert told[0] <= max(10, slow["at_end"][0][1]) + 2, (
        "the thread that has failed still has to end"
    )
    assert storage.list_steps(tmp_path / "run" / "checkpoints")[0].name == storage.step_name(16)


def test_what_is_written_beside_the_training_is_of_the_step_of_its_name(
    corpus: Path,
    tmp_path: Path,
    slow: dict[str, Any],
) -> None:
    """Weights and moments, although training has changed them by the time they are written."""
    slow |= {"release_at": 7, "last": 8}
    for name in ("beside", "between"):
        settings = {"async_save": name == "beside", "save_interval": 4, "eval_interval": 8}
        go(tiny(corpus, tmp_path / name, **settings))
    beside, between = (
        tmp_path / name / "checkpoints" / storage.step_name(4) for name in ("beside", "between")
    )
    assert slow["at_end"][0][1] >= 7
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert storage.sha256_file(beside / file) == storage.sha256_file(between / file)


def test_an_error_that_ends_the_run_lets_a_save_end_first(
    corpus: Path, tmp_path: Path, slow: dict[str, Any]
) -> None:
    class Failing(StopRequest):
        def __bool__(self) -> bool:
            if slow["updates"] == 6:
                threading.Timer(0.3, slow["go_on"].set).start()
                raise BadDataError("made up")  # which this rank alone has found
            return False

    slow |= {"release_at": None, "last": 8}
    with pytest.raises(BadDataError, match="made up"):
        go(tiny(corpus, tmp_path, async_save=True), stop=Failing())
    assert storage.verify(tmp_path / "checkpoints" / storage.step_name(4)) == []


@pytest.mark.thorough
def test_a_rank_that_cannot_write_ends_the_run_on_all_ranks(corpus: Path, tmp_path: Path) -> None:
    stderr = in_ranks("full_disk", 2, tmp_path, corpus)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    step, message = first
    assert message.startswith("rank 1: cannot write model-00002-of-00002.safetensors")
    assert 6 < step <= 9, "the third save in a row that failed was that of step 6"
    assert stderr.count("training goes on") == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == []


@pytest.mark.thorough
def test_sampling_from_and_resuming_a_sharded_checkpoint_in_one_process(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    small = [
        "--n-layer",
        "2",
        "--n-head",
        "2",
        "--n-embd",
        "32",
        "--block-size",
        "32",
        "--batch-size",
        "4",
    ]
    small += [
        "--gradient-accumulation-steps",
        "2",
        "--max-iters",
        "3",
        "--device",
        "cpu",
        "--eval-iters",
        "1",
    ]
    small += ["--dtype", "float32", "--out-dir", "shared"]
    nanogpt(
        "train",
        "--dataset",
        corpus,
        *small,
        "--strategy",
        "fsdp",
        "--async-save",
        "--save-interval",
        1,
        ranks=2,
    )
    (newest, *_) = storage.list_steps(tmp_path / "shared" / "checkpoints")
    files = {path.name for path in newest.glob("*.safetensors")}
    assert files == {
        f"{kind}-0000{n}-of-00002.safetensors" for kind in ("model", "optimizer") for n in (1, 2)
    }
    sample = ("sample", "shared", "--max-new-tokens", "8", "--prompt", "def", "--json")
    assert len(json.loads(nanogpt(*sample).stdout)["samples"]) >= 1
    again = json.loads(
        nanogpt("train", "--dataset", corpus, *small, "--max-iters", "5", "--json").stdout
    )
    assert again["step"] == 5
