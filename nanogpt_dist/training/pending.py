"""Results of steps from the time they are made until they are read, logged and judged."""

from dataclasses import replace

from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training.groups import lower_rates
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.saver import Saver
from nanogpt_dist.training.step import StepResult


class PendingResults:
    """The results of steps, which are read in their order.

    One that comes late, as on CUDA, is read while the device makes the next step: it never waits
    for this process. One that is there is read at once. All ranks read at the same places.
    """

    def __init__(
        self,
        state: TrainState,
        progress: Progress,
        saver: Saver,
        max_skipped: int,
    ) -> None:
        self.state, self.progress, self.saver = state, progress, saver
        self.max_skipped = max_skipped
        # steps in a row, up to the last one read, whose gradient was not finite
        self.skipped = 0
        self._unread: list[tuple[TrainState, StepResult]] = []  # with the state after the step

    @property
    def all_read(self) -> bool:
        """Whether the device has nothing of ours left to do."""
        return not self._unread

    def add(self, result: StepResult) -> None:
        """Take the result of the step that self.state has counted last; read what came before it.

        Raises as read_all().
        """
        if result.late:
            self.read_all()
        self._unread.append((replace(self.state), result))
        if not result.late:
            self.read_all()

    def read_all(self) -> None:
        """Wait for all results; count and log them, and warn of skipped steps.

        Raises ConfigError, on all ranks, after too many of these in a row.
        """
        while self._unread:
            self._read(*self._unread.pop(0))

    def _read(self, made: TrainState, result: StepResult) -> None:
        self.skipped = 0 if result.finite else self.skipped + 1
        self.state.skipped += not result.finite
        self.progress.log_step(made, result)
        if self.skipped:
            self._warn(made.step, result)

    def _warn(self, step: int, result: StepResult) -> None:
        if self.progress.recorder is not None:
            note_event(self.progress.run, "skip", step, grad_norm=result.grad_norm)
        self.progress.console.line(
            f"warning: step {step} skipped, its gradient's norm is {result.grad_norm} (loss "
            f"{result.loss:.4f})"
        )
        if self.skipped < self.max_skipped:
            return
        error = ConfigError(
            f"no finite gradient in {self.skipped} steps up to step {step}; "
            f"{self.saver.last_good(self.state)}: {lower_rates(self.progress.config)}"
        )
        error.agreed = True  # all ranks have seen the same norms
        raise error
