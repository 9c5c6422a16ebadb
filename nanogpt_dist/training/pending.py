"""Results of steps from the time they are made until they are read, logged and judged."""

from collections.abc import Callable
from dataclasses import replace

from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.errors import ConfigError, NanogptError
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training import spikes
from nanogpt_dist.training.groups import lower_rates
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.roll_back import RollBack
from nanogpt_dist.training.saver import Saver
from nanogpt_dist.training.step import StepResult

NAMED = 3  # documents of a batch that a warning names; events.jsonl has all
MAX_SPIKES = 10  # in a row that are skipped: by then it is no batch's fault

DocumentsOf = Callable[[int], list[int]]  # those in the batch of a step, which counts from 1


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
        documents_of: DocumentsOf,
    ) -> None:
        self.state, self.progress, self.saver = state, progress, saver
        self.max_skipped, self.documents_of = max_skipped, documents_of
        # steps in a row, up to the last one read, whose gradient was not finite
        self.not_finite = 0
        self.spikes = 0  # steps in a row, up to the last one read, that were one
        self.skipped = False  # whether the last one read left the weights as they were
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
        """Wait for all results; count and log them, and warn of skipped steps and spikes.

        Raises ConfigError, on all ranks, after too many of these in a row, and RollBack.
        """
        while self._unread:
            self._read(*self._unread.pop(0))

    def _read(self, made: TrainState, result: StepResult) -> None:
        self.skipped = result.skipped
        spikes.remember(
            self.state,
            result.loss,
            result.grad_norm,
            skipped=self.skipped,
            begins_anew=self.progress.config.ramp.begins_at(made.step - 1),
        )
        self.not_finite = 0 if result.finite else self.not_finite + 1
        self.spikes = self.spikes + 1 if result.spiked else 0
        self.state.skipped += self.skipped
        self.progress.log_step(made, result)
        if self.not_finite:
            self._warn_not_finite(made.step, result)
        elif self.spikes:
            self._warn_of_spike(made.step, result)

    def _warn_not_finite(self, step: int, result: StepResult) -> None:
        documents = self._note("skip", step, grad_norm=result.grad_norm)
        self.progress.console.line(
            f"warning: step {step} skipped, its gradient's norm is {result.grad_norm} (loss "
            f"{result.loss:.4f}){documents}"
        )
        if self.not_finite >= self.max_skipped:
            raise self._no_use(f"no finite gradient in {self.not_finite} steps up to step {step}")

    def _warn_of_spike(self, step: int, result: StepResult) -> None:
        """Once of several in a row that nothing is done about."""
        doing = self.progress.config.on_spike
        if doing == "log" and self.spikes > 1:
            return
        loss, norm = result.loss, result.grad_norm
        documents = self._note("spike", step, loss=loss, grad_norm=norm, doing=doing)
        done = ", skipped" if result.skipped else ""
        self.progress.console.line(
            f"warning: step {step} is a spike{done}: {result.limits.told(loss, norm)}{documents}"
        )
        if doing == "rollback":
            raise RollBack(step)
        if doing == "skip" and self.spikes >= MAX_SPIKES:
            raise self._no_use(f"{self.spikes} spikes in a row up to step {step}")

    def _note(self, event: str, step: int, **more: object) -> str:
        """Note an event with the documents of the step's batch; these for a warning."""
        if self.progress.recorder is None:  # rank 0 has it
            return ""
        try:
            documents = self.documents_of(step)
        except (NanogptError, OSError):  # a run must not end by a list of names
            documents = []
        note_event(self.progress.run, event, step, **more, documents=documents)
        if not documents:
            return ""
        more_of_them = f" and {len(documents) - NAMED:,} more" if len(documents) > NAMED else ""
        named = ", ".join(f"{number:,}" for number in documents[:NAMED])
        return f"; documents {named}{more_of_them}"

    def _no_use(self, what: str) -> ConfigError:
        error = ConfigError(
            f"{what}; {self.saver.last_good(self.state)}: {lower_rates(self.progress.config)}"
        )
        error.agreed = True  # all ranks have seen the same figures
        return error
