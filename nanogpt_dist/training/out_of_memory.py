"""Out of memory: what to type, and with auto_batch_size the fall-back to a smaller layout.

Whoever is short of memory, mostly in the first steps of an attempt, leaves with an OutOfMemoryError
that falls back. The others learn it at the roll call. Rank 0 notes the next layout in run.json, and
all of them start again on it, from the newest checkpoint or step 0, as any later attempt does.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.check_memory import takes_more
from nanogpt_dist.distributed.layout import Layout, Site, next_layout
from nanogpt_dist.distributed.strategy import site_of
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import (
    NanogptError,
    OutOfMemoryError,
    StoppedError,
    is_lost_peer,
    one_line,
)
from nanogpt_dist.gpu_errors import is_out_of_memory
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.auto_layout import described, to_remember
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.optim import training_bytes


@dataclass(frozen=True)
class OutOfMemory:
    """What becomes of an out-of-memory in a run on `layout`; state: of the run, which goes on.

    stop: where it has been asked for, nothing begins anew, which would not know of it.
    """

    config: TrainConfig
    layout: Layout
    world: World
    console: Console
    state: TrainState
    stop: StopRequest

    @property
    def _site(self) -> Site:
        """By which the next layout is found, also without auto_batch_size."""
        config = self.config.model_copy(update={"auto_batch_size": True})
        return site_of(config, self.world, training_bytes(config))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """A block that is left with an OutOfMemoryError where memory ends in it."""
        try:
            yield
        except Exception as error:
            if isinstance(error, NanogptError) or not is_out_of_memory(error):
                raise
            raise self._explain() from error

    def _explain(self) -> OutOfMemoryError:
        site, config = self._site, self.config
        smaller = next_layout(site, self.layout)
        what = f"out of memory after step {self.state.step}, with {described(self.layout)}"
        if smaller is None:
            return OutOfMemoryError(f"{what}; {takes_more(site)}")
        if not config.auto_batch_size:
            return OutOfMemoryError(
                f"out of memory after step {self.state.step}, with micro-batches of "
                f"{self.layout.batch_size}; add --auto-batch-size, or type "
                f"{flags_to(smaller, self.layout, config)}"
            )
        return OutOfMemoryError(f"{what}; the next attempt has {described(smaller)}", True)

    @contextlib.contextmanager
    def remembered(self, run: OpenRun) -> Iterator[None]:
        """A block whose fall-back rank 0 notes in run.json, on the console and as an event."""
        if not self.config.auto_batch_size:
            yield
            return
        watchdog = self.world.watchdog

        def note(error: BaseException) -> None:
            if not isinstance(error, OutOfMemoryError) or not error.falls_back:
                return
            if self.world.is_rank0:
                self._remember(run, error)
            if watchdog.agree_to_stop(bool(self.stop)):
                raise self._stopped(run)

        watchdog.noting.append(note)
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, OutOfMemoryError) or is_lost_peer(error)):
                raise
            named = watchdog.leave(error)
            note(named)
            raise named from error.__cause__
        finally:
            watchdog.noting.remove(note)

    def _stopped(self, run: OpenRun) -> StoppedError:
        smaller = next_layout(self._site, self.layout)
        assert smaller is not None
        stopped = StoppedError(
            f"stopped as memory ran out after step {self.state.step}; the same command goes on "
            f"with {described(smaller)}"
        )
        run.note_failure(stopped)
        return stopped

    def _remember(self, run: OpenRun, error: OutOfMemoryError) -> None:
        smaller = next_layout(self._site, self.layout)
        assert smaller is not None
        chosen = to_remember(self.config, smaller, self.world)
        with contextlib.suppress(NanogptError):  # it is tried again as it was, and says so itself
            run.refuse_moved()
            before = run_folder.read_json(run.path / "run.json")
            run_folder.write_json(run.path / "run.json", {**before, **chosen})
            crash_loops.ended(run.path, "out of memory")
        note_event(run.path, "out_of_memory", self.state.step, message=str(error), **chosen)
        self.console.line(one_line(f"warning: {error}"))


def flags_to(smaller: Layout, layout: Layout, config: TrainConfig) -> str:
    """What to type to come from `layout` to `smaller`, which saves more."""
    if smaller.strategy != layout.strategy:
        return f"--strategy {smaller.strategy}"
    if smaller.activation_checkpointing != layout.activation_checkpointing:
        return f"--activation-checkpointing {smaller.activation_checkpointing}"
    flags = f"--batch-size {smaller.batch_size}"
    if config.batch_ramp is None:
        steps = config.global_batch_size // smaller.batch_size
        flags += f" --gradient-accumulation-steps {steps}"
    return flags + (" --no-join-micro-batches" if config.join_micro_batches else "")
