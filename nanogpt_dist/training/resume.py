"""Where a run goes on, and whether it may."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, ConfigError
from nanogpt_dist.evaluation.loss import Evaluator, spread
from nanogpt_dist.storage import run_checkpoints
from nanogpt_dist.training import crash_loops, decay
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.plan import Plan


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint to go on from, and what its config.toml and state.json say."""

    path: Path
    config: TrainConfig
    state: TrainState
    facts: dict[str, Any]  # of state.json, beside the TrainState

    @classmethod
    def read(cls, path: Path) -> "ResumePoint":
        """Raises BadDataError."""
        return cls(path, checkpoint.load_config(path), *checkpoint.load_state(path))

    @property
    def origin(self) -> str | None:
        """Whose the first weights were; None for seeded ones."""
        return self.facts.get("began_from") or self.facts.get("imported_from")

    def refuse_another_run(self, config: TrainConfig, data: DataFolder) -> None:
        """Refuse settings and data with which this run cannot go on.

        Raises ConfigError for other shapes or another order of the data, BadDataError for other
        data.
        """
        names = [*settings_where(on_resume="refuse"), "global_batch_size"]
        if changed := self._changed(config, names):
            raise ConfigError(
                f"{config.out_dir} holds a run with {', '.join(changed)}; give another --out-dir"
            )
        facts = self.facts
        if origin := facts.get("imported_from"):  # of its data only the tokenizer is known
            if facts.get("tokenizer_fingerprint") != data.tokenizer.fingerprint:
                raise BadDataError(
                    f"{self.path.name} ({origin}) has other ids than {data.path}; give another "
                    "--dataset"
                )
            return
        if facts.get("dataset_id") != data.dataset_id:
            raise BadDataError(
                f"{config.out_dir} was trained on data set {str(facts.get('dataset_id'))[:12]}, "
                f"{data.path} is {data.dataset_id[:12]}; give another --out-dir or the old "
                "--dataset"
            )

    def notes(self, config: TrainConfig, world: World) -> list[str]:
        """How the run goes on otherwise than it began: by its settings, and bit by bit."""
        lines = []
        if changed := self._changed(config, settings_where(on_resume="note")):
            lines.append(f"not as the checkpoint had it: {', '.join(changed)}")
        now = {"world_size": world.size, "threads_per_rank": torch.get_num_threads()}
        moved = [
            f"{name} {self.facts[name]} (now {value})"
            for name, value in now.items()
            if self.facts.get(name, value) != value
        ]
        if moved:
            lines.append(
                f"{', '.join(moved)}: the same tokens in the same order, rounded otherwise"
            )
        return lines

    def _changed(self, config: TrainConfig, names: Iterable[str]) -> list[str]:
        """Settings that differ, as "name OLD (now NEW)"."""
        both = {name: (getattr(self.config, name), getattr(config, name)) for name in names}
        return [f"{name} {old} (now {new})" for name, (old, new) in both.items() if old != new]


def make_ready(run: OpenRun, branch_from: Path | None, config: TrainConfig) -> None:
    """Clear what dead attempts left; a run that has had no checkpoint gets a copy of `branch_from`.

    Raises, on all ranks, ConfigError, MissingInputError, BadDataError, StorageError.
    """
    with run.world.with_long_timeout.raise_on_all_ranks():
        if run.world.is_rank0:
            for folder in (run.path, run.checkpoints):
                storage.sweep(folder)
            if branch_from is not None and run_checkpoints.is_new(run.path):
                storage.require_good(branch_from)
                decay.refuse_to_branch(branch_from, config)
                run_checkpoints.copy_to_run(branch_from, run.path)


def find_start(run: OpenRun, plan: Plan, fresh: bool, console: Console) -> ResumePoint | None:
    """The checkpoint to go on from, None for step 0. Rank 0 chooses; all ranks read it, once.

    Raises, on all ranks, CannotCreateError where `fresh` finds checkpoints, and what
    refuse_another_run() raises.
    """
    world, config = run.world, plan.config
    start: ResumePoint | None = None
    with world.with_long_timeout.raise_on_all_ranks():  # it reads whole checkpoints
        if world.is_rank0:
            newest = run_checkpoints.checkpoint_to_resume(
                run.path, fresh, lambda text: console.line(f"warning: {text}")
            )
            stable = decay.before_decay(newest, config) if newest is not None else None
            chosen = _or_one_before(run, stable, config, console)
            if chosen is not None:
                start = ResumePoint.read(chosen)
                start.refuse_another_run(config, plan.data)
                if stable != newest:
                    assert newest is not None
                    assert stable is not None
                    names = decay.set_aside_after(stable)
                    console.line(
                        f"note: {newest.name} has decayed; going on from {chosen.name}, before the "
                        f"decay; what came after is kept as {', '.join(reversed(names))}"
                    )
                decay.pin_decay_start(run.checkpoints, start.state.step, config)
                for line in start.notes(config, world):
                    console.line(f"note: {line}")
    name = world.broadcast_text("" if start is None else start.path.name)
    with world.with_long_timeout.raise_on_all_ranks():
        if name and start is None:
            storage.wait_for(run.checkpoints / name)
            start = ResumePoint.read(run.checkpoints / name)
    return start


def _or_one_before(
    run: OpenRun,
    newest: Path | None,
    config: TrainConfig,
    console: Console,
) -> Path | None:
    """`newest`, or the one before where that was tried too often. Notes the attempt."""
    step, settings = _steps_made(newest), crash_loops.digest(config, run.world.size)
    chosen = newest
    if crash_loops.steps_back(run.path, step, settings):
        assert newest is not None
        chosen = run_checkpoints.good_before(newest)
        console.line(
            f"warning: {crash_loops.IN_VAIN} attempts in a row ended without a checkpoint after "
            f"{newest.name}; starting from {chosen.name}, once"
        )
    crash_loops.begun(run.path, step, _steps_made(chosen), settings)
    return chosen


def _steps_made(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else storage.step_at(checkpoint)


def forget_lost_best(run: OpenRun, state: TrainState) -> None:
    """Forget a best checkpoint that is gone: nothing worse would ever be called the best again."""
    best = state.best_step
    there = run.world.is_rank0 and best is not None
    there = there and (run.checkpoints / storage.step_name(best or 0)).is_dir()
    if not run.world.any(there):
        state.best_step = state.best_val_loss = None


def forget_other_best(start: ResumePoint, state: TrainState, evaluator: Evaluator) -> str | None:
    """Forget a best val loss over other windows than `evaluator`'s; a note where there was one."""
    if state.best_val_loss is None:
        return None
    saved = start.config
    before = spread(evaluator.split.tokens, saved.block_size, saved.eval_iters * saved.batch_size)
    if np.array_equal(before.starts, evaluator.windows.starts):
        return None
    loss, step = state.best_val_loss, state.best_step
    state.best_val_loss = state.best_step = None
    return (
        f"the best val loss so far, {loss:.4f} at step {step}, was over {len(before.starts):,} "
        f"windows of the val split, from here on it is over {len(evaluator.windows.starts):,}: "
        "they are not compared"
    )
