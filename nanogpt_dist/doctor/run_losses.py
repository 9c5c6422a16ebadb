"""What the losses of a run say: not finite, diverged, spikes, nothing learnt, overfitting.

A train loss is that of one step, so it is noisy. Its noise is measured by the run itself: the
median of |loss − median of the lines around it|, times 1.4826, is the standard deviation of a
normal noise, and a few wild lines do not move it.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist import storage
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.run_facts import Line, RunFacts, number
from nanogpt_dist.errors import Exit
from nanogpt_dist.training.spikes import NORMAL

Floats = NDArray[np.float64]
AROUND = 10  # lines on either side of one
FEWEST = 20  # lines below which nothing is said of noise
SPIKE = 10.0  # standard deviations above the lines around it
LEAST_SPIKE = 0.05  # of the median, at least
DIVERGED = 0.2  # of its lowest median, that the loss stands above it at the end
FLAT = 2.0  # standard errors: a fall that is less is none
FLAT_LINES = 40  # of the last half, at least
OVERFIT = 0.01  # of the best val loss, at least, that the last one is above it
ERRORS = 2.0  # standard errors of an evaluation above its best


def check_losses(facts: RunFacts) -> list[Check]:
    """What is odd about the losses, or one Check that they are fine."""
    finite = [line for line in facts.train if number(line, "loss") is not None]
    steps = np.array([line["step"] for line in finite], dtype=np.int64)
    loss = np.array([number(line, "loss") for line in finite], dtype=np.float64)
    found = [
        *_not_finite(facts),
        *(_diverged(facts, steps, loss) or _flat(facts, steps, loss)),
        *_spikes(facts, steps, loss),
        *_overfitting(facts, loss),
    ]
    return found or [Check("losses", "ok", _standing(facts, loss))]


def _standing(facts: RunFacts, loss: Floats) -> str:
    if not len(loss):
        return "none logged yet"
    val = [found for line in facts.val if (found := number(line, "val_loss")) is not None]
    told = f"train {loss[0]:.4f} → {np.median(loss[-AROUND:]):.4f}"
    return told + (f", val {val[0]:.4f} → {val[-1]:.4f}" if val else "")


def _not_finite(facts: RunFacts) -> list[Check]:
    """NaN and infinity stand as null in metrics.jsonl."""
    lines = [*facts.train, *facts.val]
    bad = sorted(line["step"] for line in lines if _is_not_finite(line))
    if not bad:
        return []
    last = _is_not_finite(facts.train[-1]) if facts.train else True
    text = f"NaN or infinite in {len(bad)} of {len(lines)} lines, first at step {bad[0]:,}"
    good = _before(facts, bad[0])
    return [
        Check(
            "losses",
            "error" if last else "warning",
            text + ("" if last else "; finite again since"),
            _with_lower_rate(facts, good),
            Exit.BAD_DATA,
        )
    ]


def _is_not_finite(line: Line) -> bool:
    return any(
        key in line and (line[key] is None or line[key] != line[key])
        for key in ("loss", "val_loss")
    )


def _diverged(facts: RunFacts, steps: NDArray[np.int64], loss: Floats) -> list[Check]:
    """A loss that has risen and stayed there."""
    if len(loss) < FEWEST:
        return []
    level, noise = _level(loss), _noise(loss)
    lowest = int(level.argmin())
    rise = float(np.median(loss[-AROUND:]) - level[lowest])
    if rise < max(DIVERGED * level[lowest], SPIKE * noise / math.sqrt(AROUND)):
        return []
    at = int(steps[lowest])
    return [
        Check(
            "losses",
            "warning",
            f"diverged: train loss {level[lowest]:.4f} around step {at:,}, "
            f"{level[lowest] + rise:.4f} now",
            _with_lower_rate(facts, _before(facts, at)),
        )
    ]


def _flat(facts: RunFacts, steps: NDArray[np.int64], loss: Floats) -> list[Check]:
    """Nothing learnt over the last half: its end is no lower than its beginning, nor is val."""
    half = loss[len(loss) // 2 :]
    if len(half) < FLAT_LINES:
        return []
    quarter = len(half) // 4
    fall = float(half[:quarter].mean() - half[-quarter:].mean())
    error = _noise(half) * math.sqrt(2 / quarter)
    val = [found for line in facts.val if (found := number(line, "val_loss")) is not None]
    improves = len(val) > 1 and min(val[len(val) // 2 :]) < min(val[: len(val) // 2])
    if fall > FLAT * error or improves:
        return []
    since = int(steps[len(steps) // 2])
    text = f"flat: train loss {half.mean():.4f} since step {since:,}, nothing learnt since"
    rate = number(facts.train[-1], "learning_rate")
    peak = facts.config.learning_rate if facts.config else None
    if facts.config and rate is not None and peak and rate < peak / 100:
        text += f" (the learning rate is {rate:.2g}, its peak was {peak:.2g})"
        more = facts.change_line("--max-iters", 2 * facts.step or 1)
        return [Check("losses", "warning", text, more)]
    flags = ("--learning-rate", _short((peak or 6e-4) * 3))
    todo = facts.fresh_line("higher", *flags) if facts.is_finished else facts.change_line(*flags)
    return [Check("losses", "warning", text, todo)]


def _spikes(facts: RunFacts, steps: NDArray[np.int64], loss: Floats) -> list[Check]:
    """Lines far above those around them, after the warm-up."""
    if len(loss) < FEWEST:
        return []
    level, noise = _level(loss), _noise(loss)
    above = loss - level > np.maximum(SPIKE * noise, LEAST_SPIKE * level)
    above &= steps > (facts.config.warmup_iters if facts.config else 0)
    places = np.flatnonzero(above & ~np.roll(above, 1))
    if not len(places):
        return []
    worst = int((loss - level).argmax())
    shown = ", ".join(f"{steps[place]:,}" for place in places[-3:])
    return [
        Check(
            "losses",
            "warning",
            f"{len(places)} spike{'s' * (len(places) > 1)}, the highest {loss[worst]:.4f} beside "
            f"{level[worst]:.4f}; the last at step {shown}",
            _with_lower_rate(facts, _before(facts, int(steps[places[0]]))),
        )
    ]


def _overfitting(facts: RunFacts, loss: Floats) -> list[Check]:
    """Val loss above its best while train loss falls on."""
    known = [line for line in facts.val if number(line, "val_loss") is not None]
    val = np.array([number(line, "val_loss") for line in known], dtype=np.float64)
    if len(val) < 3 or not len(loss):
        return []
    best = int(val.argmin())
    error = number(known[-1], "standard_error") or 0.0
    rise, now = float(val[-1] - val[best]), float(np.median(loss[-AROUND:]))
    # the same windows each time: two evaluations differ by less than either's own error
    if rise < max(OVERFIT * val[best], ERRORS * error) or now >= val[best]:
        return []
    at = known[best]["step"]
    dropout = 0.2 if facts.config is None or facts.config.dropout < 0.2 else 0.4
    place = _before(facts, at)
    if place is not None:
        todo = facts.branch_line(place, "dropout", "--dropout", dropout)
    elif facts.is_finished:
        todo = facts.fresh_line("dropout", "--dropout", dropout)
    else:
        todo = facts.change_line("--dropout", dropout)
    return [
        Check(
            "losses",
            "warning",
            f"overfitting: val loss {val[-1]:.4f}, at its best {val[best]:.4f} at step {at:,}, "
            f"train loss {now:.4f}",
            todo,
        )
    ]


def _level(loss: Floats) -> Floats:
    """The median of the lines around each, (n,)."""
    padded = np.pad(loss, AROUND, mode="reflect" if len(loss) > AROUND else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)
    return np.asarray(np.median(windows, axis=1), dtype=np.float64)


def _noise(loss: Floats) -> float:
    """The standard deviation of a line around its level, by MAD."""
    return float(NORMAL * np.median(np.abs(loss - _level(loss))))


def _before(facts: RunFacts, step: int) -> Path | None:
    """The newest checkpoint at or before `step`."""
    return next((path for path in facts.steps if storage.step_at(path) <= step), None)


def _with_lower_rate(facts: RunFacts, checkpoint: Path | None) -> str:
    """What to type to go on from before with half the learning rates."""
    flags: list[object] = []
    if facts.config is not None:
        config = facts.config
        rates = {
            "learning_rate": config.learning_rate,
            "min_lr": config.min_lr,
            **({"muon_learning_rate": config.muon_learning_rate} if _has_muon(facts) else {}),
        }
        for name in ("embedding_learning_rate", "head_learning_rate", "scalar_learning_rate"):
            if (rate := getattr(config, name)) is not None:
                rates[name] = rate
        for name, rate in rates.items():
            flags += [f"--{name.replace('_', '-')}", _short(rate / 2)]
    if checkpoint is not None:
        return facts.branch_line(checkpoint, "lower", *flags)
    return facts.fresh_line("lower", *flags)


def _has_muon(facts: RunFacts) -> bool:
    return facts.config is not None and facts.config.optimizer == "muon"


def _short(rate: float) -> str:
    return f"{rate:.3g}"
