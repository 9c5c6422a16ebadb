"""`nanogpt ladder`: several sizes of a preset, the scaling law of their losses, larger ones."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing, sweep_runs
from cli.options import Json, note, takes_settings
from cli.sweep import DryRun, FailFast, NprocPerNode, Plot, TableOnly, count, loss, runs_table
from cli.terminal import echo, echo_table, echo_wrapped
from nanogpt_dist.config import TrainConfig

if TYPE_CHECKING:
    from nanogpt_dist.ladder.ladder import Ladder, Prediction, Reading


@takes_settings(TrainConfig)
def ladder(
    settings: dict[str, Any],
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE.toml",
            autocompletion=completing.presets,
            help="What is trained at each size.",
        ),
    ],
    sizes: Annotated[
        str,
        typer.Option(
            metavar="SIZE,…",
            help="Widths, which get the preset's ratio of layers and its size of heads; or "
            "LAYERSxWIDTH.",
        ),
    ],
    tokens_per_parameter: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Tokens for each parameter; several, e.g. 5,10,20: a run for each, which a law "
            "in tokens wants.  [default: 20, unless --max-iters is given]",
            show_default=False,
        ),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,…", help="Sizes that are trained, but not fitted: the law's error there."
        ),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:D|PRESET",
            help="What N parameters after D tokens will reach, or a preset; may be given again.",
            show_default=False,
        ),
    ] = None,
    nproc_per_node: NprocPerNode = None,
    table: TableOnly = False,
    plot: Plot = None,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a preset at several sizes, fit a scaling law, and say what a larger model will reach.

    The law is L(N, D) = E + A/N^α + B/D^β of Hoffmann et al. 2022, for N parameters after D tokens;
    where each size has one D, or D goes with N, it is E + A/N^α. N counts the head and no
    embedding. --out-dir is the folder of all runs, by default out/ladders/PRESET.

    Rates stay as they are at every width; --base-width W scales those of AdamW by W / n_embd.

    Type the same again to go on: runs that are done are skipped, others resumed.
    """
    from nanogpt_dist.ladder import ladder as ladders

    sweep_runs.refuse_ranks()
    asked = [ladders.wanted(each) for each in predict or []]
    found = _build(preset, settings, sizes, hold_out, tokens_per_parameter)
    if dry_run:
        for run in found.sweep.runs:
            echo(sweep_runs.command(found.sweep, run, nproc_per_node))
        return
    failures = []
    if not table:
        failures = sweep_runs.make_runs(found.sweep, found.sweep.runs, nproc_per_node, fail_fast)
        sweep_runs.tell(failures)
    reading = ladders.read(found)
    predictions = [
        *ladders.held_out(found, reading),
        *(ladders.predict(reading, *each) for each in asked),
    ]
    if plot is not None:
        from nanogpt_dist.ladder.plots import plot_ladder

        plot_ladder(reading, predictions, plot)
    if json:
        _print_json(found, reading, predictions)
        return
    _print(found, reading, predictions)
    if plot is not None:
        echo(f"{plot} is drawn")


def _build(
    preset: str,
    settings: dict[str, Any],
    sizes: str,
    hold_out: str | None,
    ratios: str | None,
) -> "Ladder":
    from nanogpt_dist import api, load_config
    from nanogpt_dist.ladder import ladder as ladders
    from nanogpt_dist.ladder.sweep import checked

    config = load_config.load(preset, settings)
    config = api.with_rows_of_data(preset, config, "vocab_size" in settings, lambda _: None)
    if ratios is None and "max_iters" not in settings:
        ratios = ladders.RATIO
    found = ladders.build(preset, config, settings, sizes, hold_out, ratios)
    checked(found.sweep)
    if config.base_width is None and len({run.settings["n_embd"] for run in found.sweep.runs}) > 1:
        note("all widths have the same rates; --base-width W makes them those of width W")
    return found


def _print(found: "Ladder", reading: "Reading", predictions: list["Prediction"]) -> None:
    echo_table(runs_table(list(reading.results), names_tell=True), spare=("best", "bits/byte"))
    for line in _sentences(found, reading):
        echo_wrapped(line)
    if predictions:
        echo_table(_table(predictions))


def _sentences(found: "Ladder", reading: "Reading") -> list[str]:
    """What was fitted, to what, and how well."""
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
    if fit.in_tokens:
        flops = 6 * float((reading.n * reading.d).max())
        n, d = fit.law.best_for(flops)
        lines.append(
            f"of {flops:.3g} FLOPs, as the largest run takes, the best use is {n:,.0f} parameters "
            f"after {d:,.0f} tokens"
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
