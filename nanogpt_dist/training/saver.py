"""When a run saves, and what it does when saving fails.

The commit is storage's, the content checkpoint's.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import Contents, TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.devices import dtype_name, total_memory_bytes
from nanogpt_dist.errors import NanogptError, StorageError
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training import decay, optim
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.replicas import Replicas
from nanogpt_dist.training.schedule import is_wsd, stable_until
from nanogpt_dist.training.step import TrainStep

COPY_SHARE = 0.25  # of a machine's memory that a copy of them may take unasked
MAX_FAILURES = 3  # saves in a row; then the run stops, since what it computes cannot be kept


def due(config: TrainConfig, step: int, evaluated: bool, improved: bool) -> bool:
    """Whether to save after `step` steps, which are not the last.

    A wsd run does where its decay starts: a longer one goes on from there.
    """
    if is_wsd(config) and step == stable_until(config):
        return True
    if evaluated and improved and not config.always_save_checkpoint:
        return True
    if config.save_interval is not None:
        return step % config.save_interval == 0
    return evaluated and config.always_save_checkpoint


class Saver:
    """Commits checkpoints of one run, tells when that fails, keeps the newest few and the best.

    A commit may go on in a thread, from a copy in CPU memory (config.async_save); at most one at a
    time.
    """

    def __init__(
        self,
        run: OpenRun,
        train_step: TrainStep,
        data: DataFolder,
        console: Console,
        newest: Path | None,
    ) -> None:
        self.run, self.train_step, self.data, self.console = run, train_step, data, console
        self.config, self.world = train_step.config, run.world
        self.replicas = Replicas(train_step)
        self.newest = newest  # at first the one that the run resumes
        self._kept = {newest.name} if newest is not None else set()
        self._to_pin: list[int] = []  # where the decay starts, until that is pinned
        self.failures = 0
        self.writing: Writing | None = None
        # whether commits go on beside the training; decided at the first one
        self._beside: bool | None = None
        self._copies: dict[str, Tensor] = {}  # where this rank's values are meanwhile

    def improves(self, state: TrainState) -> bool:
        """Whether the val loss is below that of every checkpoint.

        The one that is being written included.
        """
        known = [state, self.writing.state] if self.writing is not None else [state]
        lowest = min(math.inf if one.best_val_loss is None else one.best_val_loss for one in known)
        return state.val_loss is not None and state.val_loss < lowest

    def keep(self, step: int | None) -> None:
        """Never delete the checkpoint of `step`."""
        if step is not None:
            self._kept.add(storage.step_name(step))

    def save(self, state: TrainState, evaluated: bool, required: bool = False) -> None:
        """Commit `state`, as the best checkpoint so far if it improves(); all ranks together.

        evaluated: whether the weights were evaluated at this step.

        On a full disk warn and go on, unless `required` or for the third time in a row. Raises
        ConfigError where the weights are not finite, StorageError.
        """
        self.finish(state)
        if self.newest is not None and self.newest.name == storage.step_name(state.step):
            return
        with self.world.raise_on_all_ranks():
            self.run.refuse_moved()
        self.compare_replicas(state)
        if missed := decay.missed_start(self.newest, state.step, self.config):
            self.console.line(f"warning: {missed}")
        # now that it is known what became of the one before
        best = evaluated and self.improves(state)
        saved = (
            replace(state, best_val_loss=state.val_loss, best_step=state.step) if best else state
        )
        if self._beside is None:
            self._beside = self._is_to_go_on_beside()
        later = self._beside and not required
        copies = self._copies if later else None
        mine = self.train_step.contents(saved, copies)
        commit = functools.partial(self._commit, mine, self._about())
        self.writing = Writing(mine.state, commit, later)
        if not later:
            self.finish(state, required)

    def compare_replicas(self, state: TrainState) -> None:
        """Refuse to go on where the ranks' copies differ, as Replicas.compare() does."""
        self.replicas.compare(state.step, self._last_good())

    @property
    def ended(self) -> bool:
        """Whether this rank's part of a background commit has ended; True without one."""
        return self.writing is None or self.writing.ended

    def finish(self, state: TrainState, required: bool = False) -> None:
        """Wait for a background commit and note its result in `state`; all ranks together."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        error = writing.wait()
        if isinstance(error, StorageError):  # the same on all ranks
            self.failures += 1
            if required or self.failures >= MAX_FAILURES:
                raise error
            good = f"; the last good one is {self.newest.name}" if self.newest else ""
            self.console.line(
                f"warning: not saved at step {writing.state.step}, training goes on{good}: {error}"
            )
            return
        if error is not None:
            raise error
        self.failures = 0
        state.best_val_loss, state.best_step = writing.state.best_val_loss, writing.state.best_step
        self.newest = self.run.checkpoints / storage.step_name(writing.state.step)

    def last_good(self, state: TrainState) -> str:
        """Which checkpoint there is to go on from, in words; all ranks together."""
        self.finish(state)  # the commit under way may be that one
        return self._last_good()

    def _last_good(self) -> str:
        if self.newest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.newest.name}"

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A block that is not left by an error while a commit is under way.

        Unless other ranks may be gone.
        """
        try:
            yield
        except NanogptError as error:
            if self.writing is not None and (self.world.size == 1 or error.agreed):
                self.writing.wait()
            raise

    def _is_to_go_on_beside(self) -> bool:
        """Whether to save in the background: as set, or where memory has room for a copy."""
        if self.config.async_save is not None:
            return self.config.async_save
        size = optim.checkpoint_bytes(self.config) * self.train_step.model.num_params()
        needed = size / self.train_step.layout.shard
        room = COPY_SHARE * total_memory_bytes(torch.device("cpu")) / self.world.local_size
        return not self.world.any(needed > room)

    def _about(self) -> dict[str, Any]:
        train_step = self.train_step
        return {
            "dataset_id": self.data.dataset_id,
            "tokenizer_fingerprint": self.data.tokenizer.fingerprint,
            "world_size": self.world.size,
            "layout": str(train_step.layout),
            "threads_per_rank": torch.get_num_threads(),
            "dtype": dtype_name(train_step.dtype, train_step.config.dtype),
            "torch": torch.__version__,
            "scaler": train_step.scaler.state_dict(),
            **({"began_from": train_step.origin} if train_step.origin else {}),
        }

    def _commit(self, mine: Contents, about: dict[str, Any]) -> None:
        """Commit on all ranks, with a long timeout; perhaps in a thread beside the training."""
        start = time.perf_counter()
        path = checkpoint.save(
            self.world.with_long_timeout,
            self.run.checkpoints,
            mine,
            self.config,
            self.data.tokenizer,
            about,
        )
        try:
            if self.world.is_rank0:
                self._note_save(mine.state.step, path, time.perf_counter() - start)
                self._follow_up(mine.state, path.name)
        except (
            StorageError
        ) as error:  # the checkpoint is durable already: no reason to call it not saved
            self.console.line(f"warning: {path.name} is saved, but {error}")
        # the others wait here: a slow disk may take longer to delete than the next vote waits
        self.world.with_long_timeout.any(False)

    def _note_save(self, step: int, path: Path, seconds: float) -> None:
        size = None
        with contextlib.suppress(OSError):  # the checkpoint is saved; an event must not end the run
            size = sum(file.stat().st_size for file in path.iterdir())
        note_event(self.run.path, "save", step, seconds=round(seconds, 3), bytes=size)

    def _follow_up(self, state: TrainState, name: str) -> None:
        """Make room first, then note the checkpoint where people and scripts look.

        Whatever could not be noted, as on a full disk, the next save notes.
        """
        if decay.starts_at(state.step, self.config):
            self.keep(state.step)
            self._to_pin.append(state.step)
        best = {storage.step_name(state.best_step)} if state.best_step is not None else set()
        also = best | self._kept | run_checkpoints.kept_by_keep_every(self.run.checkpoints)
        storage.prune(
            self.run.checkpoints, self.config.keep_checkpoints, also, self.config.keep_every
        )
        storage.write_latest(self.run.checkpoints, name)
        while self._to_pin:
            decay.pin_decay_start(self.run.checkpoints, self._to_pin[0], self.config)
            del self._to_pin[0]
        run_folder.write_status(self.run.path, run_folder.Status("running", state.step, name))


class Writing:
    """A commit that is under way, in a thread if it may end later, and how it ended."""

    def __init__(self, state: TrainState, commit: Callable[[], None], later: bool) -> None:
        self.state, self._commit = state, commit
        self._error: BaseException | None = None
        self._thread = (
            threading.Thread(target=self._run, name="save", daemon=True) if later else None
        )
        if self._thread is not None:
            self._thread.start()
        else:
            self._run()

    def _run(self) -> None:
        try:
            self._commit()
        except BaseException as error:
            self._error = error

    @property
    def ended(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> BaseException | None:
        """What the commit raised, once it has ended."""
        if self._thread is not None:
            self._thread.join()
        return self._error
