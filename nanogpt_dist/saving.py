"""When a run saves, and what it does when saving fails. The commit is storage's, the content checkpoint.py's."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from nanogpt_dist import checkpoint, runs, storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed import World
from nanogpt_dist.errors import ConfigError, StorageError
from nanogpt_dist.metrics import Console
from nanogpt_dist.shards import DataFolder
from nanogpt_dist.update import Updater

MAX_FAILURES = 3  # saves in a row; then the run stops, since what it computes cannot be kept


def due(config: TrainConfig, step: int, evaluated: bool, improved: bool) -> bool:
    """Whether to save after `step` updates, which are not the last."""
    if evaluated and improved and not config.always_save_checkpoint:
        return True
    if config.save_interval is not None:
        return step % config.save_interval == 0
    return evaluated and config.always_save_checkpoint


class Saver:
    """Commits checkpoints of one run, tells when that fails, keeps the newest few and the best."""

    def __init__(
        self, run: Path, config: TrainConfig, world: World, data: DataFolder, console: Console, newest: Path | None
    ) -> None:
        self.folder, self.run, self.config = runs.checkpoints_of(run), run, config
        self.world, self.data, self.console = world, data, console
        self.newest = newest
        self.failures = 0

    def save(self, state: TrainState, updater: Updater, improved: bool, required: bool) -> None:
        """Commit `state`, as the best checkpoint so far if it has `improved`.

        On a full disk warn and go on, unless `required` or for the third time in a row. Raises ConfigError where the
        weights are not finite, StorageError.
        """
        if self.newest is not None and self.newest.name == storage.step_name(state.step):
            return
        saved = replace(state, best_val_loss=state.val_loss, best_step=state.step) if improved else state
        try:
            with self.world.together():
                if self.world.leads:
                    refuse_not_finite(state.step, updater)
                    self._commit(saved, updater)
        except StorageError as error:
            self.failures += 1
            if required or self.failures >= MAX_FAILURES:
                raise
            self.console.line(f"warning: not saved at step {state.step}, training goes on: {error}")
            return
        self.failures = 0
        state.best_val_loss, state.best_step = saved.best_val_loss, saved.best_step
        self.newest = self.folder / storage.step_name(state.step)

    def _commit(self, state: TrainState, updater: Updater) -> None:
        about = {
            "dataset_id": self.data.dataset_id,
            "tokenizer_fingerprint": self.data.tokenizer.fingerprint,
            "world_size": self.world.size,
            "threads_per_rank": torch.get_num_threads(),
            "dtype": str(updater.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "scaler": updater.scaler.state_dict(),
        }
        path = checkpoint.save(
            self.folder, state, updater.model, updater.optimizer, self.config, self.data.tokenizer, about
        )
        try:
            self._follow_up(state, path.name)
        except StorageError as error:  # the checkpoint is durable already: no reason to call it not saved
            self.console.line(f"warning: {path.name} is saved, but {error}")

    def _follow_up(self, state: TrainState, name: str) -> None:
        """Make room first, then note the checkpoint where people and scripts look."""
        best = {storage.step_name(state.best_step)} if state.best_step is not None else set()
        storage.prune(self.folder, self.config.keep_checkpoints, best)
        storage.write_latest(self.folder, name)
        runs.write_status(self.run, "running", 0, state.step, "", name)


def refuse_not_finite(step: int, updater: Updater) -> None:
    """Raises ConfigError where a weight or moment is NaN or infinite: such a checkpoint would bury the good ones."""
    moments = [value for state in updater.optimizer.state.values() for value in state.values()]
    if not all(torch.isfinite(tensor).all() for tensor in [*updater.model.parameters(), *moments]):
        raise ConfigError(
            f"the weights are not finite at step {step}, nothing is saved; go on from the last checkpoint with a "
            f"--learning-rate below {updater.config.learning_rate:g}"
        )


def enough_room(folder: Path, updater: Updater, keep: int) -> str | None:
    """A warning where the disk cannot hold the checkpoints that are kept: fp32 weights and AdamW's two moments."""
    needed = 12 * updater.model.num_params() * (keep + 2)
    free = shutil.disk_usage(folder).free
    return (
        f"{needed / 2**30:.1f} GiB for checkpoints, {free / 2**30:.1f} GiB free at {folder}" if free < needed else None
    )
