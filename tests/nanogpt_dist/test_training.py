"""The training run: what it computes, what it leaves behind, and that stopping and resuming change no bit of it."""

import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch import processes
from nanogpt_dist import storage
from nanogpt_dist.checkpoint import load_state
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed import World
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, MissingInputError, StoppedError
from nanogpt_dist.runs import find_checkpoint
from nanogpt_dist.shards import DataFolder
from nanogpt_dist.stopping import SIGNALS, StopRequest
from nanogpt_dist.training import Result, fit_to_data, train
from nanogpt_dist.update import Updater
from tests.conftest import TINY, Run, command

ONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), backend=None)
STEPS = 24  # of the runs below; they save every 4


def tiny(corpus: Path, run: Path, **changes: object) -> TrainConfig:
    names = (name.removeprefix("--").replace("-", "_") for name in TINY[::2])
    flags = {name: parsed(value) for name, value in zip(names, TINY[1::2], strict=True)}
    common = {"dataset": str(corpus), "out_dir": str(run), "max_iters": 8, "eval_interval": 4, "tensorboard": False}
    return resolve({**flags, **common, **changes})


def parsed(value: str) -> object:
    """A flag's value as the command line gives it to the config: a number where it is one."""
    try:
        return float(value) if {".", "e"} & set(value) else int(value)
    except ValueError:
        return value


def go(config: TrainConfig, fresh: bool = False, stop: StopRequest | None = None) -> Result:
    return train(config, ONE, StopRequest() if stop is None else stop, fresh)


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_sha256(run: Path, step: int = STEPS) -> str:
    return storage.sha256_file(run / "checkpoints" / storage.step_name(step) / "model.safetensors")


def test_a_run_learns_and_leaves_what_it_promises(corpus: Path, tmp_path: Path) -> None:
    result = go(tiny(corpus, tmp_path / "run", max_iters=60, eval_interval=30, log_interval=1))
    assert result.step == 60
    assert result.tokens == 60 * 8 * 32
    found = records(tmp_path / "run")
    losses = [record["loss"] for record in found if "loss" in record]
    assert losses[0] == pytest.approx(math.log(320), abs=0.3)  # 257 ids, rounded up to 320 rows
    assert losses[-1] < losses[0] - 1.5
    assert result.val_loss == [record["val_loss"] for record in found if "val_loss" in record][-1]
    assert (tmp_path / "run" / "config.toml").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["verdict"] == "done"
    last = Path(result.checkpoint)
    assert {path.name for path in last.iterdir()} == {
        *("model.safetensors", "optimizer.safetensors", "state.json", "config.toml", "tokenizer.json", "manifest.json")
    }
    assert not storage.verify(last)
    assert storage.read_latest(tmp_path / "run" / "checkpoints") == last.name


def test_the_config_it_leaves_can_be_given_back(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"))
    from nanogpt_dist.presets import load

    assert load(str(tmp_path / "run" / "config.toml")).model_dump(exclude={"vocab_size"}) == tiny(
        corpus, tmp_path / "run"
    ).model_dump(exclude={"vocab_size"})


def test_the_loss_is_the_mean_over_the_global_batch_for_any_micro_batch(corpus: Path, tmp_path: Path) -> None:
    losses = []
    for i, (batch_size, accumulation) in enumerate([(8, 1), (4, 2), (1, 8)]):
        run = tmp_path / str(i)
        go(tiny(corpus, run, batch_size=batch_size, gradient_accumulation_steps=accumulation, log_interval=1))
        losses.append([record["loss"] for record in records(run) if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++ for the CPU")
def test_a_compiled_run_is_the_same_run(corpus: Path, tmp_path: Path) -> None:
    plain, compiled = (
        go(tiny(corpus, tmp_path / name, n_layer=1, compile=name == "compiled")) for name in ("plain", "compiled")
    )
    assert compiled.val_loss == pytest.approx(plain.val_loss, rel=1e-5)
    names = [load_file(Path(run.checkpoint) / "model.safetensors").keys() for run in (plain, compiled)]
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


def test_a_finished_run_is_left_alone_and_goes_further_on_demand(corpus: Path, tmp_path: Path) -> None:
    first = go(tiny(corpus, tmp_path / "run", decay_lr=False))
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(first.checkpoint).iterdir())
    again = go(tiny(corpus, tmp_path / "run", decay_lr=False))
    assert (again.step, again.val_loss) == (first.step, first.val_loss)
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(first.checkpoint).iterdir()) == before
    assert go(tiny(corpus, tmp_path / "run", max_iters=12, decay_lr=False)).step == 12
    whole = go(tiny(corpus, tmp_path / "whole", max_iters=12, decay_lr=False))
    assert weights_sha256(tmp_path / "run", 12) == weights_sha256(tmp_path / "whole", 12)
    assert whole.step == 12


def test_fresh_never_destroys(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"), fresh=True)
    with pytest.raises(CannotCreateError, match="--fresh needs another --out-dir"):
        go(tiny(corpus, tmp_path / "run"), fresh=True)


def test_a_lost_checkpoint_is_never_taken_for_a_new_run(corpus: Path, tmp_path: Path) -> None:
    result = go(tiny(corpus, tmp_path / "run"))
    for step in storage.list_steps(tmp_path / "run" / "checkpoints"):
        step.rename(tmp_path / step.name)
    with pytest.raises(MissingInputError, match=f"lost its checkpoint {Path(result.checkpoint).name}"):
        go(tiny(corpus, tmp_path / "run"))
    assert go(tiny(corpus, tmp_path / "run"), fresh=True).step == 8


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(corpus: Path, tmp_path: Path) -> None:
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
    [({"n_layer": 3}, "n_layer 2"), ({"seed": 7}, "seed 1337"), ({"batch_size": 8}, "global_batch_size 8")],
)
def test_another_architecture_or_order_of_data_is_refused(
    corpus: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    go(tiny(corpus, tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"holds a run with {words} .*give another --out-dir"):
        go(tiny(corpus, tmp_path / "run", **change))


def test_other_data_is_refused(corpus: Path, tmp_path: Path) -> None:
    from prepare.build import build

    go(tiny(corpus, tmp_path / "run"))
    (tmp_path / "other.txt").write_text("to be or not to be\n" * 2000, encoding="utf-8")
    build("text", tmp_path / "other", sources=[tmp_path / "other.txt"], tokenizer="byte", workers=1)
    with pytest.raises(BadDataError, match="was trained on data set"):
        go(tiny(tmp_path / "other", tmp_path / "run"))


def test_a_vocabulary_smaller_than_the_datas_is_refused(corpus: Path) -> None:
    data = DataFolder.open(corpus)
    with pytest.raises(ConfigError, match="type --vocab-size 257"):
        fit_to_data(resolve({"vocab_size": 200}), data)
    assert fit_to_data(resolve({}), data).vocab_size == 320


def test_only_improvements_are_saved_on_demand_and_the_newest_and_the_best_are_kept(
    corpus: Path, tmp_path: Path
) -> None:
    config = tiny(corpus, tmp_path / "run", max_iters=40, eval_interval=4, always_save_checkpoint=False)
    go(config)
    state, _ = load_state(storage.list_steps(tmp_path / "run" / "checkpoints")[0])
    evaluations = {record["step"]: record["val_loss"] for record in records(tmp_path / "run") if "val_loss" in record}
    kept = {storage.step_of(path.name) for path in storage.list_steps(tmp_path / "run" / "checkpoints")}
    assert state.best_val_loss == min(evaluations.values())
    assert evaluations[state.best_step] == state.best_val_loss
    assert {state.best_step, 40} <= kept
    assert len(kept) <= 3


def test_a_gradient_that_is_not_finite_changes_nothing_and_three_in_a_row_end_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned: set[int] = {3}
    update = Updater.update

    def poison(self: Updater, step: int, *rest: object) -> object:
        if step not in poisoned:
            return update(self, step, *rest)  # type: ignore[arg-type]
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        handle = self.model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
        result = update(self, step, *rest)  # type: ignore[arg-type]
        handle.remove()
        assert all(torch.equal(p, before[name]) for name, p in self.model.named_parameters())
        return result

    monkeypatch.setattr(Updater, "update", poison)
    assert go(tiny(corpus, tmp_path / "one")).step == 8
    state, _ = load_state(tmp_path / "one" / "checkpoints" / storage.step_name(8))
    assert state.skipped == 1
    poisoned |= {4, 5, 6}
    with pytest.raises(ConfigError, match="no finite gradient in 3 updates up to step 6"):
        go(tiny(corpus, tmp_path / "three", save_interval=1))
    steps = storage.list_steps(tmp_path / "three" / "checkpoints")
    assert [storage.step_of(path.name) for path in steps] == [3, 2], "what was left out pushes no good checkpoint out"


def test_a_checkpoint_is_saved_even_where_it_cannot_be_noted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest = tmp_path / "run" / "checkpoints" / storage.LATEST
    latest.mkdir(parents=True)  # in the way
    assert go(tiny(corpus, tmp_path / "run")).step == 8
    assert "step-00000004 is saved, but" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_committed(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, tmp_path / "run", max_iters=4, eval_interval=2, decay_lr=False)
    go(config)
    with pytest.raises(ConfigError, match="weights are not finite at step 5, nothing is saved"):
        go(config.model_copy(update={"max_iters": 9, "save_interval": 1, "learning_rate": 1e300}))
    assert storage.list_steps(tmp_path / "run" / "checkpoints")[0].name == storage.step_name(4)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["verdict"], status["code"], status["checkpoint"]) == ("failed", 78, storage.step_name(4))
    assert go(config.model_copy(update={"max_iters": 6})).step == 6


def test_the_best_is_the_best_of_what_was_saved(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, tmp_path / "run", max_iters=30, eval_interval=2, save_interval=6)
    result = go(config)
    evaluated = {record["step"]: record["val_loss"] for record in records(tmp_path / "run") if "val_loss" in record}
    assert result.best_val_loss == min(loss for step, loss in evaluated.items() if step % 6 == 0)
    best = find_checkpoint(str(tmp_path / "run"), best=True)
    assert evaluated[storage.step_of(best.name)] == result.best_val_loss


def test_a_mistake_leaves_the_status_of_a_finished_run(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run"))
    before = (tmp_path / "run" / "status.json").read_bytes()
    with pytest.raises(ConfigError):
        go(tiny(corpus, tmp_path / "run", n_layer=1))
    assert (tmp_path / "run" / "status.json").read_bytes() == before


def test_status_says_running_from_the_first_update_on(corpus: Path, tmp_path: Path) -> None:
    seen = []

    class Looking(StopRequest):
        def __bool__(self) -> bool:
            seen.append(json.loads((tmp_path / "run" / "status.json").read_text())["verdict"])
            return False

    go(tiny(corpus, tmp_path / "run"), stop=Looking())
    assert set(seen) == {"running"}


def test_a_terminal_that_goes_away_does_not_end_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert go(tiny(corpus, tmp_path / "run")).verdict == "done"


def test_a_stop_before_the_first_update_is_obeyed_at_once() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
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


def test_a_second_run_on_the_same_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with storage.RunLock(tmp_path / "run"), pytest.raises(CannotCreateError, match=str(os.getpid())):
        go(tiny(corpus, tmp_path / "run"))


def test_tensorboard_reads_the_scalars_of_a_stopped_and_resumed_run(corpus: Path, tmp_path: Path) -> None:
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
    recorded = {record["step"]: record["loss"] for record in records(tmp_path / "run") if "loss" in record}
    for event in board.Scalars("train/loss"):
        assert event.value == pytest.approx(recorded[event.step])


@pytest.mark.parametrize("ranks", [0, 2])
def test_stopped_and_killed_runs_end_with_the_weights_of_an_undisturbed_one(
    corpus: Path, tmp_path: Path, nanogpt: Run, ranks: int
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
        code, told = stop_at_a_random_step(command("train", *flags, "--out-dir", out, ranks=ranks), out, sign, seed)
        if sign == signal.SIGTERM and not ranks:  # torchrun returns 1 whatever its ranks return
            assert code == {"stopped": 75, "done": 0}[json.loads(told)["verdict"]], f"seed {seed}"
        nanogpt("train", *flags, "--out-dir", out, ranks=ranks)
        assert weights_sha256(out) == weights_sha256(tmp_path / "whole"), f"{sign.name}, seed {seed}"


def stop_at_a_random_step(line: list[str], out: Path, sign: signal.Signals, seed: int) -> tuple[int, str]:
    """Start `line`, wait for its first checkpoint and a while more, send `sign` to all its processes.

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
        while left := processes.marked("NANOGPT_TEST", str(out)):  # torchrun's ranks have sessions of their own
            processes.send(signal.SIGKILL, left)
    told, _ = process.communicate(timeout=60)
    return process.returncode, told
