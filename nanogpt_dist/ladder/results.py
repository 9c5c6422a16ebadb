"""What the runs of a sweep have reached: loss over tokens, seconds and FLOPs, best first."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist.config.ramps import Ramp
from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.inspect import compare_runs
from nanogpt_dist.inspect.compare_runs import Curve
from nanogpt_dist.ladder.sizes import Size, size_of
from nanogpt_dist.ladder.sweep import Sweep, SweepRun, state
from nanogpt_dist.storage import run_folder

Floats = NDArray[np.float64]
BUDGETS = ("tokens", "seconds", "flops")


@dataclass(frozen=True)
class RunResult:
    """How a run stands; without a curve it has logged nothing yet.

    size: parameters and FLOPs per token.
    """

    run: SweepRun
    folder: Path
    state: str
    steps: int = 0
    curve: Curve | None = None
    size: Size | None = None

    @property
    def evaluated(self) -> bool:
        """Whether it has a val loss."""
        return self.curve is not None and len(self.curve.val_loss) > 0

    @property
    def val_loss(self) -> float | None:
        """Of its last evaluation, in nats/token."""
        return float(self.curve.val_loss[-1]) if self.curve and self.evaluated else None

    def spent(self, budget: str) -> Floats:
        """Tokens, seconds or FLOPs up to each evaluation: (n,); NaN where they are not known.

        Seconds are those in steps, without evaluations and saves. FLOPs: of forward and backward.
        """
        assert self.curve is not None
        curve, tokens = self.curve, self.curve.val_tokens
        if budget == "tokens":
            return tokens
        if budget == "flops":
            return _flops(tokens, curve.config.ramp, self.size)
        if curve.train_seconds is None:
            return np.full_like(tokens, np.nan)
        known, seconds = (
            np.concatenate([[0.0], each]) for each in (curve.train_tokens, curve.train_seconds)
        )
        return np.interp(tokens, known, seconds)

    def total(self, budget: str) -> float | None:
        """What it has spent at its last evaluation; None: unknown."""
        spent = self.spent(budget) if self.evaluated else np.array([])
        return float(spent[-1]) if len(spent) and np.isfinite(spent[-1]) else None

    def loss_at(self, budget: str, amount: float) -> float | None:
        """Its val loss when it had spent so much, on the line between two evaluations.

        None before the first, and after the last.
        """
        if not self.evaluated or self.curve is None:
            return None
        spent = self.spent(budget)
        # that of the shortest run, which rounding may put a little beyond its own end
        within = spent[0] * (1 - 1e-9) <= amount <= spent[-1] * (1 + 1e-9)
        return float(np.interp(amount, spent, self.curve.val_loss)) if within else None


def _flops(tokens: Floats, ramp: Ramp, size: Size | None) -> Floats:
    """FLOPs of the first `tokens` of a run: (n,) → (n,); attention's depend on the context."""
    if size is None:
        return np.full_like(tokens, np.nan)
    starts = [ramp.tokens_before(piece.first) for piece in ramp.pieces]
    lengths = np.diff([*starts, np.inf])
    flops = np.zeros_like(tokens)
    for start, length, of_token in zip(starts, lengths, size.flops_at, strict=True):
        flops += of_token * np.clip(tokens - start, 0, length)
    return flops


def read(sweep: Sweep) -> list[RunResult]:
    """How each run of `sweep` stands, in the order of the runs."""
    size = functools.cache(size_of)
    return [_read(sweep, run, size) for run in sweep.runs]


def _read(sweep: Sweep, run: SweepRun, size: Callable[..., Size]) -> RunResult:
    folder, config = sweep.folder(run), sweep.config(run)
    how = state(folder, config.max_iters)
    try:
        curve = compare_runs.read_curve(folder)
        saved = run_folder.read_status(folder).get("step", 0)
    except (MissingInputError, BadDataError):
        return RunResult(run, folder, how)
    architecture = curve.config.architecture()
    lengths = (piece.length for piece in curve.config.ramp.pieces)
    known = size(architecture, *lengths) if architecture.vocab_size else None
    return RunResult(run, folder, how, max(saved, curve.step), curve, known)


def share_windows(results: Sequence[RunResult]) -> bool:
    """Whether all val losses are over the same windows of a val split, as far as settings tell."""
    configs = [one.curve.config for one in results if one.curve and one.evaluated]
    return len({(each.block_size, each.eval_iters * each.batch_size) for each in configs}) < 2


def best_first(results: Sequence[RunResult]) -> list[RunResult]:
    """By val loss; those that have none come last, in their order."""
    return sorted(results, key=lambda one: (one.val_loss is None, one.val_loss or 0.0))


def largest_common(results: Sequence[RunResult], budget: str) -> float | None:
    """The largest amount that all runs with a val loss have spent; None: there is none."""
    totals = [one.total(budget) for one in results if one.evaluated]
    known = [total for total in totals if total is not None]
    return min(known) if known and len(known) == len(totals) else None


def at_equal(results: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """{budget: {amount, val_loss: of each run}} at the largest amount that all have spent."""
    found = {}
    for budget in BUDGETS:
        amount = largest_common(results, budget)
        losses = [None if amount is None else one.loss_at(budget, amount) for one in results]
        found[budget] = {"amount": amount, "val_loss": losses}
    return found


def figures(result: RunResult) -> dict[str, Any]:
    """A run's line in a table, and its object in JSON."""
    curve = result.curve
    return {
        "name": result.run.name,
        "run": str(result.folder),
        "differs": result.run.differs,
        "verdict": result.state,
        "step": result.steps,
        "parameters": result.size.parameters if result.size else None,
        "tokens": int(result.total("tokens") or 0),
        "seconds": result.total("seconds"),
        "flops": result.total("flops"),
        "val_loss": result.val_loss,
        "best_val_loss": float(curve.val_loss.min()) if curve and result.evaluated else None,
        "bits_per_byte": curve.bits_per_byte if curve else None,
    }
