"""Before the first update: whose run folder this is, and where to go on."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import (
    BadDataError,
    ConfigError,
    Exit,
    NanogptError,
    StorageError,
    explain,
    one_line,
)
from nanogpt_dist.evaluation.loss import Evaluator, spread
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.metrics import Console


@contextlib.contextmanager
def open_run(config: TrainConfig, world: World) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The run's folder, locked by rank 0 against a second run; and what raises StorageError once it
    was moved away.
    """
    assert config.out_dir is not None
    run, lock = Path(config.out_dir), storage.RunLock(Path(config.out_dir))
    with contextlib.ExitStack() as stack:
        with world.raise_on_all_ranks():
            if world.is_rank0:
                storage.probe_writable(run)
                if (checkpoints := run_folder.checkpoints_of(run)).is_symlink():  # to another disk
                    storage.probe_writable(checkpoints)
                stack.enter_context(lock)
        yield run, lock.refuse_moved if world.is_rank0 else lambda: None


@contextlib.contextmanager
def noting_failure(run: Path, world: World, refuse_moved: Callable[[], None]) -> Iterator[None]:
    """An error that ends the block stands in the run's status.json, too, as long as the folder is
    there.
    """
    try:
        yield
    except BaseException as error:
        named = world.watchdog.leave(error)
        with contextlib.suppress(StorageError):  # another run may have begun under this name
            refuse_moved()
            _note(run, world, named)
        raise named from error.__cause__


def _note(run: Path, world: World, error: BaseException) -> None:
    told = isinstance(error, NanogptError) and (
        error.quiet or (error.agreed and not world.is_rank0)
    )
    if told:  # by another rank
        return
    code, line = explain(error)
    # a full disk may be what ended the run: its own error says so
    with contextlib.suppress(NanogptError):
        before = run_folder.read_json(run / "status.json")
        verdict = "stopped" if code == Exit.STOPPED else "failed"
        step, newest = before.get("step", 0), before.get("checkpoint")
        run_folder.write_status(run, run_folder.Status(verdict, step, newest, code, one_line(line)))
        if code == Exit.STOPPED:
            crash_loops.ended(run, verdict)


def resume_point(
    run: Path,
    config: TrainConfig,
    data: DataFolder,
    fresh: bool,
    world: World,
    console: Console,
    branch_from: Path | None = None,
) -> Path | None:
    """The checkpoint to go on from, None for step 0. Rank 0 looks and verifies; all ranks are told
    the name.

    branch_from: another run's checkpoint, with which this run begins.
    """
    chosen = ""
    with world.raise_on_all_ranks():
        if world.is_rank0:
            for folder in (run, run_folder.checkpoints_of(run)):
                storage.sweep(folder)
            if branch_from is not None:
                run_checkpoints.branch(branch_from, run)
            found = run_checkpoints.checkpoint_to_resume(
                run, fresh, lambda text: console.line(f"warning: {text}")
            )
            found = _perhaps_back(run, found, config, world, console)
            if found is not None:
                check_same_run(found, config, data)
                if changed := _changed(
                    checkpoint.load_config(found), config, settings_where(on_resume="note")
                ):
                    console.line(f"note: not as the checkpoint had it: {', '.join(changed)}")
                if moved := _moved(found, world):
                    console.line(
                        f"note: {moved}: the same tokens in the same order, rounded otherwise"
                    )
                chosen = found.name
    chosen = world.broadcast_text(chosen)
    return run_folder.checkpoints_of(run) / chosen if chosen else None


def _perhaps_back(
    run: Path,
    newest: Path | None,
    config: TrainConfig,
    world: World,
    console: Console,
) -> Path | None:
    """The checkpoint to start from: the one before `newest` if that was tried in vain. Notes the
    start.
    """
    step, settings = _step_of(newest), crash_loops.digest(config, world.size)
    chosen = newest
    if crash_loops.steps_back(run, step, settings):
        assert newest is not None
        older = [path for path in storage.list_steps(newest.parent) if _step_of(path) < step]
        chosen = next((path for path in older if not storage.verify(path)), newest)
        console.line(
            f"warning: {crash_loops.IN_VAIN} attempts in a row ended without a checkpoint after "
            f"{newest.name}; starting from {chosen.name}, once"
        )
    crash_loops.begun(run, step, _step_of(chosen), settings)
    return chosen


def _step_of(checkpoint: Path | None) -> int:
    return (storage.step_of(checkpoint.name) or 0) if checkpoint is not None else 0


def forget_lost_best(run: Path, state: TrainState, world: World) -> None:
    """A best checkpoint that is gone is the best no more: else nothing worse would ever be called
    so again.
    """
    there = world.is_rank0 and state.best_step is not None
    there = (
        there
        and (run_folder.checkpoints_of(run) / storage.step_name(state.best_step or 0)).is_dir()
    )
    if not world.any(there):
        state.best_step = state.best_val_loss = None


def forget_other_best(
    start: Path,
    state: TrainState,
    config: TrainConfig,
    evaluator: Evaluator,
) -> str | None:
    """A best val loss over other windows than `evaluator`'s is compared no more. Returns what to
    tell of that.
    """
    saved = checkpoint.load_config(start)
    before = spread(evaluator.split.tokens, saved.block_size, saved.eval_iters * saved.batch_size)
    if state.best_val_loss is None or np.array_equal(before.starts, evaluator.windows.starts):
        return None
    best, state.best_val_loss, state.best_step = (state.best_val_loss, state.best_step), None, None
    return (
        f"the best val loss so far, {best[0]:.4f} at step {best[1]}, was over "
        f"{len(before.starts):,} windows of the val split, from here on it is over "
        f"{len(evaluator.windows.starts):,}: they are not compared"
    )


def check_same_run(found: Path, config: TrainConfig, data: DataFolder) -> None:
    """Raises ConfigError where `found` has other shapes or another order of the data, BadDataError
    for other data.
    """
    names = [*settings_where(on_resume="refuse"), "global_batch_size"]
    if changed := _changed(checkpoint.load_config(found), config, names):
        raise ConfigError(
            f"{config.out_dir} holds a run with {', '.join(changed)}; give another --out-dir"
        )
    _, facts = checkpoint.load_state(found)
    if origin := facts.get("imported_from"):  # of its data only the tokenizer is known
        if facts.get("tokenizer_fingerprint") != data.tokenizer.fingerprint:
            raise BadDataError(
                f"{found.name} ({origin}) has other ids than {data.path}; give another --dataset"
            )
        return
    if facts.get("dataset_id") != data.dataset_id:
        raise BadDataError(
            f"{config.out_dir} was trained on data set {str(facts.get('dataset_id'))[:12]}, "
            f"{data.path} is {data.dataset_id[:12]}; give another --out-dir or the old --dataset"
        )


def _moved(found: Path, world: World) -> str | None:
    """What differs in the machine, where resuming is then not bitwise."""
    _, facts = checkpoint.load_state(found)
    now = {"world_size": world.size, "threads_per_rank": torch.get_num_threads()}
    changed = [
        f"{name} {facts[name]} (now {value})"
        for name, value in now.items()
        if facts.get(name, value) != value
    ]
    return ", ".join(changed) or None


def _changed(saved: TrainConfig, config: TrainConfig, names: Iterable[str]) -> list[str]:
    """Settings that differ, as "name OLD (now NEW)"."""
    both = {name: (getattr(saved, name), getattr(config, name)) for name in names}
    return [f"{name} {old} (now {new})" for name, (old, new) in both.items() if old != new]
