"""A run folder while a run is in it: locked, and told how the run ended."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import (
    CannotCreateError,
    Exit,
    NanogptError,
    OutOfMemoryError,
    StorageError,
    explain,
    one_line,
)
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.storage.manifest import MANIFEST
from nanogpt_dist.training import crash_loops


@dataclass(frozen=True)
class OpenRun:
    """The folder `path`, whose `lock` rank 0 of `world` holds."""

    path: Path
    world: World
    lock: storage.RunLock

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return run_folder.checkpoints_of(self.path)

    def refuse_moved(self) -> None:
        """Raises StorageError, on rank 0, where the folder is elsewhere now."""
        if self.world.is_rank0:
            self.lock.refuse_moved()

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """A block whose error is noted in status.json, too, as long as the folder is there."""
        watchdog = self.world.watchdog
        watchdog.noting.append(self.note_failure)
        try:
            yield
        except BaseException as error:
            named = watchdog.leave(error)
            self.note_failure(named)
            raise named from error.__cause__
        finally:
            watchdog.noting.remove(self.note_failure)

    @property
    def _starts_again(self) -> bool:
        """Whether whoever trains begins anew after a fall-back: not ranks of somebody's own."""
        return self.world.size == 1 or self.world.watchdog.ends_process

    def note_failure(self, error: BaseException) -> None:
        """Note in status.json that the run ended by `error`, where the folder is still its own."""
        with contextlib.suppress(StorageError):  # another run may have begun under this name
            self.refuse_moved()
            self._write_failure(error)

    def _write_failure(self, error: BaseException) -> None:
        if isinstance(error, OutOfMemoryError) and error.falls_back and self._starts_again:
            return
        if isinstance(error, NanogptError):
            noted_by_rank0 = error.agreed and not self.world.is_rank0
            if error.quiet or noted_by_rank0:
                return
        code, line = explain(error)
        # a full disk may be what ended the run: its own error says so
        with contextlib.suppress(NanogptError):
            before = run_folder.read_status(self.path)
            verdict = "stopped" if code == Exit.STOPPED else "failed"
            step, newest = before.get("step", 0), before.get("checkpoint")
            status = run_folder.Status(verdict, step, newest, code, one_line(line))
            run_folder.write_status(self.path, status)
            # noted again on the way out, where the error was seen first
            if (before.get("verdict"), before.get("message")) != (verdict, status.message):
                event = "stop" if code == Exit.STOPPED else "fail"
                note_event(self.path, event, step, code=code, message=status.message)
            if code == Exit.STOPPED:
                crash_loops.ended(self.path, verdict)

    def note_end(self, verdict: str, step: int, checkpoint: str) -> None:
        """Note that the run is done, or stopped on request. Raises StorageError."""
        code = Exit.DONE if verdict == "done" else Exit.STOPPED
        if run_folder.verdict_of(self.path) == "running":  # not one that was finished before
            note_event(self.path, "done" if verdict == "done" else "stop", step)
        run_folder.write_status(self.path, run_folder.Status(verdict, step, checkpoint, code))
        crash_loops.ended(self.path, verdict)


@contextlib.contextmanager
def open_run(config: TrainConfig, world: World) -> Iterator[OpenRun]:
    """config.out_dir, locked by rank 0 against a second run. Raises on all ranks where it is not.

    Raises CannotCreateError in a data set or a checkpoint, StorageError where it cannot be written,
    and what RunLock raises.
    """
    assert config.out_dir is not None
    path = Path(config.out_dir)
    run = OpenRun(path, world, storage.RunLock(path))
    with contextlib.ExitStack() as stack:
        with world.raise_on_all_ranks():
            if world.is_rank0:
                if (path / MANIFEST).exists() and not run_folder.has_begun(path):
                    raise CannotCreateError(
                        f"{shown(path)} is a data set or a checkpoint; give another --out-dir"
                    )
                storage.probe_writable(path)
                if run.checkpoints.is_symlink():  # to another disk
                    storage.probe_writable(run.checkpoints)
                stack.enter_context(run.lock)
        yield run
