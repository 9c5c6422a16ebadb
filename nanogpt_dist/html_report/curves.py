"""What the charts draw: figures of runs over steps, tokens and time, thinned. No torch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist.inspect.run_record import RunRecord, is_number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
POINTS = 40_000  # of all curves of a page together, some 30 bytes each
MOST, FEWEST = 2000, 60  # of one curve
LOSSES = ("loss", "val_loss", "val_loss_ema")
SMOOTHED = ("loss", "grad_norm")  # by report.js
PARTS = {"data_s": "data", "communication_s": "communication", "save_s": "saving"}
PARTS["eval_s"] = "evaluation"


@dataclass(frozen=True)
class Chart:
    """A chart of one or several figures of metrics.jsonl. lines: {key: its name in the legend}.

    factor: what values are multiplied by. log: whether its axis is logarithmic at first; None: it
    never is. zero: the axis begins at 0. alone: for a page of one run only, lest it have too many.
    """

    name: str
    title: str
    unit: str
    lines: dict[str, str]
    factor: float = 1.0
    log: bool | None = None
    zero: bool = False
    alone: bool = False


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats/token",
        {"loss": "train", "val_loss": "val", "val_loss_ema": "val, averaged weights"},
        log=False,
    ),
    Chart(
        "speed",
        "Throughput",
        "tokens/s",
        {"tokens_per_second": "measured", "expected_tokens_per_second": "planned"},
        zero=True,
    ),
    Chart("rate", "Learning rate", "", {"learning_rate": "rate"}, zero=True),
    Chart("norm", "Gradient norm", "", {"grad_norm": "norm"}, log=True),
    Chart(
        "shares",
        "Share of time outside computing",
        "%",
        {f"share:{key}": name for key, name in PARTS.items()},
        factor=100,
        zero=True,
        alone=True,
    ),
    Chart(
        "memory",
        "Memory",
        "GB",
        {"memory_bytes": "in use", "memory_reserved_bytes": "reserved"},
        factor=1e-9,
        zero=True,
    ),
    Chart("temperature", "GPU temperature", "°C", {"gpu_temperature_c": "temperature"}),
    Chart("clock", "GPU clock", "MHz", {"gpu_clock_mhz": "clock"}, zero=True),
    Chart(
        "slowest",
        "Slowest rank's own work, over the median of the others'",
        "×",
        {"slowest_factor": "slowest rank"},
    ),
)


def figures(record: RunRecord, key: str) -> tuple[Ints, Floats]:
    """Steps and values of a figure, (n,) each; share:NAME: NAME's seconds over the interval's."""
    if not key.startswith("share:"):
        return record.series(key)
    name = key.removeprefix("share:")
    pairs = [
        (line["step"], line[name] / line["interval_s"])
        for line in record.train
        if is_number(line.get(name)) and is_number(line.get("interval_s")) and line["interval_s"]
    ]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


@dataclass(frozen=True)
class Axes:
    """Where a run's steps stand on the axes. steps, seconds: (n,) each, of logged steps.

    seconds: since the run began, those between its attempts left out; empty where nothing tells.
    """

    record: RunRecord
    steps: Ints
    seconds: Floats

    def at(self, steps: Sequence[int] | Ints) -> dict[str, list[float]]:
        """{axis: where each of `steps` stands}; an axis that nothing is known of is left out."""
        found: dict[str, list[float]] = {"step": [int(step) for step in steps]}
        if (tokens := self.record.tokens_at(steps)) is not None:
            found["tokens"] = [int(each) for each in tokens]
        if len(self.seconds):
            known = np.concatenate([[0], self.steps]), np.concatenate([[0.0], self.seconds])
            found["seconds"] = [round(float(each), 2) for each in np.interp(steps, *known)]
        return found


def axes_of(record: RunRecord) -> Axes:
    """The Axes of a run.

    An interval takes the wall seconds that its line has, else those of its tokens at its speed;
    where both are unknown, as before the second step, the pace of the next that is known.
    """
    lines = [line for line in record.train if is_number(line.get("tokens"))]
    if not lines:
        return Axes(record, np.zeros(0, np.int64), np.zeros(0))
    steps = np.array([line["step"] for line in lines], dtype=np.int64)
    tokens = np.diff([line["tokens"] for line in lines], prepend=0.0).clip(min=0)
    pace = np.array([_pace(*pair) for pair in zip(lines, tokens, strict=True)])  # seconds a token
    known = np.flatnonzero(np.isfinite(pace))
    if not len(known):
        return Axes(record, steps, np.zeros(0))
    after = known[np.minimum(np.searchsorted(known, np.arange(len(pace))), len(known) - 1)]
    with np.errstate(over="ignore", invalid="ignore"):
        seconds = np.cumsum(tokens * pace[after])
    return Axes(record, steps, seconds if np.isfinite(seconds[-1]) else np.zeros(0))


def _pace(line: dict[str, Any], tokens: float) -> float:
    wall, speed = line.get("interval_s"), line.get("tokens_per_second")
    if is_number(wall) and wall > 0 and tokens > 0:
        return float(wall / tokens)
    return 1 / speed if is_number(speed) and speed > 0 else float("nan")


def thin(values: Floats, limit: int) -> Ints:
    """Which of `values` to draw, at most `limit` ≥ 4 of them; the same ones each time.

    The first, the last, and of each stretch between them the smallest and the largest: two each,
    also where all are equal, so that each counts the same in a mean.
    """
    n = len(values)
    if n <= limit:
        return np.arange(n)
    chosen = [0, n - 1]
    for stretch in _stretches(n, limit):
        part = values[stretch]
        low, high = int(part.argmin()), int(part.argmax())
        chosen += [stretch[low], stretch[high if high != low else -1]]
    return np.array(sorted(chosen), dtype=np.int64)


def means_of_thinned(values: Floats, limit: int) -> Floats:
    """For each of thin()'s places the mean of its stretch; (n,) → (at most limit,)."""
    if len(values) <= limit:
        return values
    with np.errstate(over="ignore"):  # _rounded() bounds it
        means = [values[stretch].mean() for stretch in _stretches(len(values), limit)]
    return np.concatenate([values[:1], np.repeat(means, 2), values[-1:]])


def _stretches(n: int, limit: int) -> list[Ints]:
    """Between the first and the last of `n` > `limit`; of two or more places each."""
    return np.array_split(np.arange(1, n - 1), (limit - 2) // 2)


def chart_data(records: Sequence[RunRecord]) -> tuple[list[Chart], list[dict[str, Any]]]:
    """The charts that these runs have figures for, and for each run {key: points}.

    Points are {axis: places, "value": values}, lists of one length; with "mean", those of the
    stretches around them, where values to be smoothed are thinned.
    """
    charts = [chart for chart in CHARTS if not chart.alone or len(records) == 1]
    keys = [key for chart in charts for key in chart.lines]
    found = [{key: figures(record, key) for key in keys if _has(record, key)} for record in records]
    found = [{key: pair for key, pair in each.items() if len(pair[0])} for each in found]
    count = sum(5 if key in LOSSES else 1 for each in found for key in each)
    share = max(FEWEST, min(MOST // 5, POINTS // max(1, count)))
    curves = []
    for record, each in zip(records, found, strict=True):
        axes = axes_of(record)
        curves.append(
            {
                key: _points(axes, key, *pair, share * 5 if key in LOSSES else share)
                for key, pair in each.items()
            }
        )
    drawn = {key for each in found for key in each}
    return [chart for chart in charts if drawn & chart.lines.keys()], curves


def _has(record: RunRecord, key: str) -> bool:
    lines = itertools.chain(record.train, record.val)
    return any(line.get(key.removeprefix("share:")) is not None for line in lines)


def _points(
    axes: Axes, key: str, steps: Ints, values: Floats, limit: int
) -> dict[str, list[float]]:
    chosen = thin(values, limit)
    points = {**axes.at(steps[chosen]), "value": _rounded(values[chosen])}
    if key in SMOOTHED and len(chosen) < len(values):
        points["mean"] = _rounded(means_of_thinned(values, limit))
    return points


def _rounded(values: Floats) -> list[float]:
    """As JSON has numbers: a quotient or a mean of what somebody has edited may be beyond them."""
    return [float(f"{value:.6g}") for value in np.nan_to_num(values)]
