"""Speed, MFU, memory and time left, to the terminal and the run folder, by rank 0."""

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import to_run_toml
from nanogpt_dist.devices import memory_bytes
from nanogpt_dist.evaluation.loss import Evaluation
from nanogpt_dist.generation.sampling import Sample
from nanogpt_dist.peaks import peak_tflops
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training.auto_layout import to_remember
from nanogpt_dist.training.metrics import Console, Recorder, duration
from nanogpt_dist.training.roll_back import for_run_json
from nanogpt_dist.training.step import StepResult, TrainStep
from nanogpt_dist.training.stragglers import Slowest
from nanogpt_dist.training.telemetry import Telemetry, shares
from nanogpt_dist.transfers import Moment


class Progress:
    """Keeps the clock of the steps and logs what is due.

    A step takes the time from the end of the one before it to its own. Evaluations and saves are
    left out of the clock. expected: tokens per second over all ranks; None: unknown.
    """

    def __init__(
        self,
        run: Path,
        train_step: TrainStep,
        state: TrainState,
        console: Console,
        telemetry: Telemetry,
        expected: float | None = None,
    ) -> None:
        config, world = train_step.config, train_step.world
        self.config, self.world, self.console = config, world, console
        self.layout = train_step.layout
        self.run, self.telemetry, self.expected = run, telemetry, expected
        self.first_step = state.step
        # val loss, in nats/token
        self.lowest = math.inf if state.best_val_loss is None else state.best_val_loss
        # spent in steps since this process started, less the first of each shape: it warms up
        self.seconds = 0.0
        self.timed = 0  # tokens of the steps in `seconds`
        self.recent = (0.0, 0)  # the same since the last log line
        self.flops_per_token = train_step.model.flops_per_token  # of a sequence's length
        self.peak_flops = peak_tflops(world.device, train_step.dtype) * 1e12 * world.size
        self.recorder = self._open(run, state) if world.is_rank0 else None
        self.clock = Moment(world.device)

    def _open(self, run: Path, state: TrainState) -> Recorder:
        remembered = {
            **to_remember(self.config, self.layout, self.world),
            **for_run_json(state.left_out),
        }
        run_folder.write_run_json(
            *(run, self.world.size, torch.get_num_threads()), torch=torch.__version__, **remembered
        )
        storage.write_atomic(run / "config.toml", to_run_toml(self.config).encode())
        newest = storage.step_name(state.step) if state.step else None
        run_folder.write_status(run, run_folder.Status("running", state.step, newest))
        note_event(run, "resume" if state.step else "start", state.step, ranks=self.world.size)
        return Recorder(run, state.step, self.config, self.console)

    @property
    def tokens_per_second(self) -> float | None:
        """Over all ranks, mean of this process's lifetime; None before the second result."""
        return self.timed / self.seconds if self.timed else None

    def log_step(self, state: TrainState, result: StepResult) -> None:
        """Stop the clock of a step whose result was read; log it where it is due.

        state: as it was after the step.
        """
        piece = self.config.ramp.at(state.step - 1)
        warm = state.step > max(self.first_step, piece.first) + 1
        self.telemetry.add_step(self.clock, warm)
        if warm:
            took = result.made - self.clock
            self.seconds += took
            self.timed += piece.tokens
            self.recent = (self.recent[0] + took, self.recent[1] + piece.tokens)
        self.clock = result.made
        due = self._is_due(state.step)
        if due and self.recorder is not None:
            self._log(self.recorder, state, result)
        if due:
            self.recent = (0.0, 0)

    def _is_due(self, step: int) -> bool:
        return step % self.config.log_interval == 0 or step in (1, self.config.max_iters)

    def vote(self, step: int, *flags: bool) -> list[bool]:
        """World.any_of_each() after `step` steps, in which the ranks tell what they took for them.

        They do before a step that is logged.
        """
        return self.telemetry.vote(list(flags), step + 1 if self._is_due(step + 1) else None)

    def _log(self, recorder: Recorder, state: TrainState, result: StepResult) -> None:
        seconds, tokens = self.recent
        # the first step is not timed
        speed = tokens / seconds if tokens else None
        length = self.config.ramp.at(state.step - 1).length
        mfu = speed * self.flops_per_token(length) / self.peak_flops if speed else None
        figures, straggler = self.telemetry.interval(state.step)
        values = {
            "step": state.step,
            "tokens": state.tokens,
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_second": speed,
            "expected_tokens_per_second": self.expected,
            "mfu": mfu,
            "memory_bytes": memory_bytes(self.world.device),
            **figures,
        }
        recorder.log_step(
            values,
            f"step {state.step:,}/{self.config.max_iters:,} · loss {result.loss:.4f} · lr "
            f"{result.learning_rate:.2e} · norm "
            f"{result.grad_norm:.2f}"
            + self._pace(state, speed, mfu)
            # the first interval is no training yet
            + (shares(figures) if speed else ""),
        )
        if straggler is not None:
            self._warn_of(straggler, state.step)

    def _warn_of(self, slowest: Slowest, step: int) -> None:
        rank, host, factor = slowest.rank, self.telemetry.hosts[slowest.rank], slowest.factor
        self.console.line(
            f"warning: the others wait for rank {rank} on {host}, whose own work takes "
            f"{factor:.1f} times as long as theirs; see what else runs there, and its clocks"
        )
        note_event(self.run, "straggler", step, rank=rank, host=host, factor=factor)

    def _pace(self, state: TrainState, speed: float | None, mfu: float | None) -> str:
        if not speed:
            return ""
        tokens_before, max_iters = self.config.ramp.tokens_before, self.config.max_iters
        left = (tokens_before(max_iters) - tokens_before(state.step)) / speed
        return f" · {speed:,.0f} tokens/s · mfu {mfu:.1%} · eta {duration(left)}"

    def log_evaluation(
        self,
        state: TrainState,
        found: Evaluation,
        averaged: Evaluation | None = None,
    ) -> None:
        """Record an evaluation; averaged: of the averaged weights, where there are any."""
        ema = {} if averaged is None else {"val_loss_ema": averaged.val_loss}
        lowest, self.lowest = found.val_loss < self.lowest, min(found.val_loss, self.lowest)
        if self.recorder is not None:
            self.recorder.log_evaluation(
                {"step": state.step, **asdict(found), **ema, "time": round(time.time(), 3)},
                f"step {state.step:,} · val loss {found.val_loss:.4f} ± {found.standard_error:.4f} "
                f"nats/token · {found.bits_per_byte:.3f} "
                "bits/byte"
                + (f" · averaged weights {averaged.val_loss:.4f}" if averaged else "")
                + (" · best so far" if lowest else ""),
            )

    def log_samples(self, state: TrainState, samples: list[Sample]) -> None:
        """Record what the model wrote after each prompt."""
        if self.recorder is not None:
            self.recorder.log_samples(state.step, samples)

    def restart_clock(self) -> None:
        """After an evaluation or a save: they do not count as training time."""
        self.clock = Moment(self.world.device)

    def close(self) -> None:
        """Flush what is open."""
        if self.recorder is not None:
            self.recorder.close()
