"""Runs side by side: settings that differ, losses at equal tokens, a plot. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist.config import TrainConfig, read_toml, resolve, settings_where
from nanogpt_dist.errors import BadDataError, ConfigError, MissingInputError
from nanogpt_dist.inspect.run_record import MOST_STEPS, number, require_run
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown, storage_errors
from nanogpt_dist.storage.json_lines import JsonLines
from nanogpt_dist.storage.user_file import write_user_file
from nanogpt_dist.training.metrics import RECORD

POINTS = 8  # of a table, evenly spaced in tokens
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One run: its settings, and its losses in nats/token over tokens, (n,) each.

    tokens_per_second: the median. train_seconds: (n,) spent in steps up to each train loss.
    """

    name: str
    config: TrainConfig
    train_tokens: Floats
    train_loss: Floats
    val_tokens: Floats
    val_loss: Floats
    tokens_per_second: float | None
    # of the last evaluation: what runs with other tokenizers have in common
    bits_per_byte: float | None = None
    step: int = 0  # the last one that was logged
    train_seconds: Floats | None = None

    @property
    def tokens(self) -> float:
        """How far it came."""
        return float(max(self.train_tokens[-1:].sum(), self.val_tokens[-1:].sum()))


def read_curve(run: Path) -> Curve:
    """What a run folder tells of its run. Raises MissingInputError, BadDataError."""
    record = run / RECORD
    require_run(run)
    if not (run / "config.toml").is_file() or not record.is_file():
        raise MissingInputError(
            f"{shown(run)} has no config.toml or no {RECORD}: nothing of it can be compared yet; "
            "give another run"
        )
    try:
        config = resolve(read_toml(run / "config.toml"))
    except ConfigError as error:
        raise BadDataError(f"{shown(run / 'config.toml')}: {error}") from None
    with storage_errors(record):
        lines = JsonLines(record).read()
    train, val, speeds, bits, step = [], [], [], None, 0
    for values in lines:
        if type(values.get("step")) is not int or not 0 <= values["step"] < MOST_STEPS:
            continue
        tokens = config.ramp.tokens_before(values["step"])
        step = max(step, values["step"])
        if isinstance(values.get("val_loss"), float):
            val.append((tokens, values["val_loss"]))
            bits = number(values, "bits_per_byte")
        elif isinstance(values.get("loss"), float):
            train.append((tokens, values["loss"]))
            speeds.append(number(values, "tokens_per_second") or math.nan)
    if not train and not val:
        raise BadDataError(f"{shown(record)} tells of no step yet")
    (x, y), (u, v) = _columns(train), _columns(val)
    speed = np.array(speeds, dtype=np.float64)
    known = speed[np.isfinite(speed)]
    median = float(np.median(known)) if len(known) else None
    return Curve(str(run), config, x, y, u, v, median, bits, step, _seconds(x, speed))


def _seconds(tokens: Floats, speed: Floats) -> Floats | None:
    """Seconds in steps up to each of `tokens`, from the speed since the one before; (n,) each.

    Where a speed is unknown (NaN), as that of a first step, it is the next one's.
    """
    known = np.flatnonzero(np.isfinite(speed))
    if not len(known):
        return None
    after = known[np.minimum(np.searchsorted(known, np.arange(len(speed))), len(known) - 1)]
    return np.cumsum(np.diff(tokens, prepend=0.0) / speed[after])


def _columns(pairs: list[tuple[int, float]]) -> tuple[Floats, Floats]:
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def differences(curves: Sequence[Curve]) -> dict[str, list[Any]]:
    """{setting: its value in each run} of the settings that are not the same in all."""
    found = {}
    for name in TrainConfig.model_fields.keys() - set(settings_where(scope="report")):
        values = [getattr(curve.config, name) for curve in curves]
        if any(value != values[0] for value in values):
            found[name] = values
    return {name: found[name] for name in TrainConfig.model_fields if name in found}


def at_equal_tokens(curves: Sequence[Curve], points: int = POINTS) -> list[dict[str, Any]]:
    """{tokens, train_loss: of each run, val_loss: of each run}, evenly spaced.

    At counts of tokens that all runs have reached.

    A train loss is the mean of what was logged since the point before, and where that is nothing
    lies on the line between the losses on both sides, as a val loss does; None beyond them.
    """
    common = min(curve.tokens for curve in curves)
    rows, before = [], 0.0
    for tokens in np.linspace(common / points, common, points):
        rows.append(
            {
                "tokens": int(tokens),
                "train_loss": [_mean_between(curve, before, tokens) for curve in curves],
                "val_loss": [
                    _between(tokens, curve.val_tokens, curve.val_loss) for curve in curves
                ],
            }
        )
        before = float(tokens)
    return rows


def _mean_between(curve: Curve, start: float, end: float) -> float | None:
    chosen = (curve.train_tokens > start) & (curve.train_tokens <= end)
    if chosen.any():
        return float(curve.train_loss[chosen].mean())
    return _between(end, curve.train_tokens, curve.train_loss)


def _between(tokens: float, known: Floats, losses: Floats) -> float | None:
    if not len(known) or not known[0] <= tokens <= known[-1]:
        return None
    return float(np.interp(tokens, known, losses))


def plot(curves: Sequence[Curve], out: Path) -> None:
    """Plot the losses over tokens into `out`, by its ending, else as PNG (extra `plot`).

    Raises: ConfigError without it; StorageError.
    """
    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    for curve in curves:
        line = axes.plot(curve.train_tokens, curve.train_loss, linewidth=0.8, alpha=0.5)[0]
        label = plain(curve.name) + (
            f", val {curve.val_loss[-1]:.4f}" if len(curve.val_loss) else ""
        )
        axes.plot(
            curve.val_tokens,
            curve.val_loss,
            "o-",
            color=line.get_color(),
            label=label,
            markersize=4,
        )
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss, nats/token (thin: train, dots: val)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, out)


def new_figure(width: float, height: float) -> Any:
    """A figure of matplotlib's, of so many inches. Raises ConfigError without the extra `plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"--plot needs matplotlib ({error}): type pip install 'nanogpt-dist[plot]'"
        ) from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure of matplotlib's to `out`, by its ending, else as PNG. Raises StorageError."""
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        ending = out.suffix[1:].lower()
        known = ending in figure.canvas.get_supported_filetypes()
        figure.savefig(drawn := BytesIO(), format=ending if known else "png")
        write_user_file(out, drawn.getvalue())


def plain(name: str) -> str:
    """A name as a label of matplotlib's.

    It takes $…$ for mathematics and hides what begins with a _.
    """
    return (f"./{name}" if name.startswith("_") else name).replace("$", r"\$")


def summary(curve: Curve) -> dict[str, Any]:
    """Where a run stands, in figures."""
    return {
        "run": curve.name,
        "tokens": int(curve.tokens),
        "step": curve.step,
        "val_loss": float(curve.val_loss[-1]) if len(curve.val_loss) else None,
        "best_val_loss": float(curve.val_loss.min()) if len(curve.val_loss) else None,
        "bits_per_byte": curve.bits_per_byte,
        "tokens_per_second": curve.tokens_per_second,
        "verdict": run_folder.verdict_of(Path(curve.name)),
    }
