"""A sweep's losses over tokens, seconds and FLOPs, and a ladder's law, as pictures (matplotlib)."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanogpt_dist.errors import CannotCreateError
from nanogpt_dist.inspect.compare_runs import new_figure, plain, save_figure
from nanogpt_dist.ladder.reading import Prediction, Reading
from nanogpt_dist.ladder.results import BUDGETS, RunResult, best_first
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.storage.user_file import probe_writable

UNITS = {"tokens": "tokens", "seconds": "seconds in steps", "flops": "FLOPs"}
NAMED = 12  # runs that the legend names, the best


def refuse_undrawable(out: Path) -> None:
    """Before runs are made whose losses are drawn into `out`.

    Raises ConfigError without matplotlib, CannotCreateError where `out` cannot be written.
    """
    new_figure(1, 1)
    if out.is_dir():
        raise CannotCreateError(f"{shown(out)} is a folder; name a file in it")
    if not out.exists() or out.is_file():  # a device or a pipe is nobody's to replace
        probe_writable(Path(os.path.realpath(out)).parent)


def plot_sweep(results: Sequence[RunResult], out: Path) -> None:
    """Val losses over each budget, side by side. Raises ConfigError without matplotlib."""
    figure = new_figure(15, 5)
    for place, budget in enumerate(BUDGETS, 1):
        axes = figure.add_subplot(1, len(BUDGETS), place)
        for number, one in enumerate(result for result in best_first(results) if result.evaluated):
            assert one.curve is not None
            label = f"{plain(one.run.name)}, {one.val_loss:.4f}" if number < NAMED else None
            axes.plot(one.spent(budget), one.curve.val_loss, "o-", label=label, markersize=3)
        axes.set_xlabel(UNITS[budget])
        axes.set_ylabel("val loss, nats/token")
        axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    save_figure(figure, out)


def plot_ladder(reading: Reading, predictions: Sequence[Prediction], out: Path) -> None:
    """The law through the losses of the runs, and its predictions beyond them."""
    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    most = max([float(reading.n.max()), *(each.parameters for each in predictions)])
    n = np.geomspace(reading.n.min(), most, 200)
    d = np.array([reading.fit.tokens_for(each) for each in n])
    axes.plot(n, reading.fit.law(n, d), color="C0", label=plain(str(reading.fit.law)))
    axes.plot(reading.n, reading.loss, "o", color="C0", label="fitted")
    for number, each in enumerate(predictions, 1):
        color = f"C{number % 10}"
        bars = None if each.low is None or each.high is None else [[each.low], [each.high]]
        if bars is not None:
            around = np.abs(np.array(bars) - each.val_loss)
            axes.errorbar([each.parameters], [each.val_loss], around, color=color, capsize=4)
        label = f"{plain(each.name)}: {each.val_loss:.4f} predicted"
        axes.plot([each.parameters], [each.val_loss], "s", color=color, label=label)
        if each.reached is not None:
            label = f"{plain(each.name)}: {each.reached:.4f} reached"
            axes.plot([each.parameters], [each.reached], "x", color=color, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("parameters, with the head, without embeddings")
    axes.set_ylabel("val loss, nats/token")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, out)
