"""What `nanogpt ladder` prints: the runs, the law of their losses, and what it predicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.options import note
from cli.sweep import count, loss, runs_table
from cli.terminal import echo, echo_table, echo_wrapped

if TYPE_CHECKING:
    from nanogpt_dist.ladder.ladder import Ladder
    from nanogpt_dist.ladder.reading import Prediction, Reading, Wanted


def report(found: "Ladder", asked: Sequence["Wanted"], plot: Path | None, as_json: bool) -> None:
    """Print how the runs stand, then the law and its predictions; draw them.

    Raises ConfigError, once the runs are told, where too few are done.
    """
    from nanogpt_dist.ladder import reading, results

    runs = results.read(found.sweep)
    if not as_json:
        echo_table(runs_table(runs, names_tell=True), spare=("best", "bits/byte"))
    known = reading.read(found, runs)
    predictions = [
        *reading.held_out(found, known),
        *(reading.predict(known, each) for each in asked),
    ]
    if as_json:
        _print_json(found, known, predictions)
    else:
        _print(known, predictions)
    for line in _otherwise(known, asked):
        note(line)
    if plot is not None:
        from nanogpt_dist.ladder.plots import plot_ladder

        plot_ladder(known, predictions, plot)
        if not as_json:
            echo(f"{plot} is drawn")


def _otherwise(reading: "Reading", asked: Sequence["Wanted"]) -> list[str]:
    """In what predictions are not of what was asked for."""
    lines = []
    if not reading.fit.in_tokens and any(each.tokens for each in asked):
        lines.append(
            "a law in N alone knows no D: what --predict asks for is predicted after as many "
            "tokens as such runs have"
        )
    rows = reading.vocab_size
    for each in asked:
        if rows and each.vocab_size not in (None, rows):
            lines.append(
                f"{each.name} has {each.vocab_size:,} ids, the runs have {rows:,}: its loss is "
                "predicted per token of theirs"
            )
    return lines


def _print(reading: "Reading", predictions: list["Prediction"]) -> None:
    for line in _sentences(reading):
        echo_wrapped(line)
    if predictions:
        echo_table(_table(predictions))


def _sentences(reading: "Reading") -> list[str]:
    """What was fitted, to what, and how well."""
    from nanogpt_dist.ladder.reading import best_use, undetermined

    fit = reading.fit
    what = f"{len(reading.n)} losses of {len(set(reading.n))} sizes"
    where = "along the runs, whose rate is constant" if reading.along_runs else "at the runs' ends"
    lines = [f"{fit.law}", f"fitted to {what}, {where}; {_residual(reading)}"]
    if not fit.in_tokens:
        lines.append(
            f"The runs' tokens go with their sizes ({_path(reading)}): this is a law in N alone, "
            "for such runs; for one in D, too, give --tokens-per-parameter 5,10,20."
        )
    lines += [
        f"{name:<5} {value:.4g}{_between(low, high)}"
        for name, value, low, high in parameters(reading)
    ]
    lines += [
        f"{name} is at the end of what is searched: these runs do not determine it"
        for name in undetermined(fit.law)
    ]
    if fit.in_tokens and (use := best_use(reading)):
        lines.append(
            f"of {use.flops:.3g} FLOPs, as the largest run takes, the best use is "
            f"{use.parameters:,.0f} parameters after {use.tokens:,.0f} tokens"
        )
    missing = [one.run.name for one in reading.results if one.state != "done"]
    if missing:
        lines.append(f"not done, and not counted: {', '.join(missing)}")
    return lines


def parameters(reading: "Reading") -> list[tuple[str, float, float | None, float | None]]:
    """Each parameter of the law with its interval of 90 %."""
    from nanogpt_dist.ladder.scaling_law import interval

    names = ("E", "A", "alpha", "B", "beta") if reading.fit.in_tokens else ("E", "A", "alpha")
    return [
        (
            name,
            getattr(reading.fit.law, name),
            *interval([getattr(law, name) for law in reading.fit.resampled]),
        )
        for name in names
    ]


def _residual(reading: "Reading") -> str:
    off = abs(reading.fit.law(reading.n, reading.d) / reading.loss - 1)
    return f"it is off by {off.mean():.2%} on average, at most {off.max():.2%}"


def _path(reading: "Reading") -> str:
    slope, ratio = reading.fit.path[1], (reading.d / reading.n).mean()
    if abs(slope - 1) < 0.05:
        return f"{ratio:,.1f} tokens per parameter"
    if abs(slope) < 0.05:
        return f"{reading.d.mean():,.0f} tokens each"
    return f"tokens as N^{slope:.2g}"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"  (90 %: {low:.4g} – {high:.4g})"


def _table(predictions: list["Prediction"]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table("predicted", box=box.SIMPLE_HEAD)
    reached = any(each.reached is not None for each in predictions)
    for header in ("parameters", "× largest fitted", "tokens", "val loss", "90 %"):
        table.add_column(header, justify="right")
    for header in ("reached", "error") if reached else ():
        table.add_column(header, justify="right")
    for each in predictions:
        known = each.low is not None and each.high is not None
        table.add_row(
            each.name,
            count(each.parameters),
            f"{each.beyond:,.1f}",
            count(each.tokens),
            loss(each.val_loss),
            f"{each.low:.4f} – {each.high:.4f}" if known else "–",
            *(
                (loss(each.reached), "–" if each.error is None else f"{each.error:+.2%}")
                if reached
                else ()
            ),
        )
    return table


def _print_json(found: "Ladder", reading: "Reading", predictions: list["Prediction"]) -> None:
    from nanogpt_dist.ladder.results import figures
    from nanogpt_dist.storage.run_folder import to_json

    law = {
        name: {"value": v, "low": low, "high": high} for name, v, low, high in parameters(reading)
    }
    runs = [{**figures(one), "held_out": one.run.name in found.held_out} for one in reading.results]
    told = [{**vars(each), "error": each.error} for each in predictions]
    points = [
        {"parameters": int(n), "tokens": int(d), "val_loss": y}
        for n, d, y in zip(reading.n, reading.d, reading.loss, strict=True)
    ]
    echo(
        to_json(
            {
                "out": str(found.sweep.out),
                "runs": runs,
                "law": law,
                "in_tokens": reading.fit.in_tokens,
                "points": points,
                "predictions": told,
            }
        )
    )
