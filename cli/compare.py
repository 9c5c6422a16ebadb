"""`nanogpt compare`: runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json
from cli.report import write_page
from cli.terminal import FILE, columns, echo, echo_table

if TYPE_CHECKING:
    from rich.table import Table

FIRST, A_RUN = 18, 22  # columns of a table: of what stands in front, of a run's two losses


def compare(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            autocompletion=completing.runs,
            help="Two runs or more.",
            show_default=False,
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw the losses over tokens (needs the extra `plot`)."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write the page of nanogpt report about them."),
    ] = None,
    json: Json = False,
) -> None:
    """Show which settings differ, and the losses after equally many tokens.

    Runs that are still training can be compared.
    """
    from nanogpt_dist.errors import UsageError
    from nanogpt_dist.inspect import compare_runs

    if len(targets) < 2:
        raise UsageError("compare takes two runs or more, e.g. nanogpt compare out/a out/b")
    curves = [compare_runs.read_curve(run) for run in targets]
    differences, rows = compare_runs.differences(curves), compare_runs.at_equal_tokens(curves)
    figures = [compare_runs.summary(curve) for curve in curves]
    if plot is not None:
        compare_runs.plot(curves, plot)
    if html is not None:
        write_page(targets, html)
    if json:
        from nanogpt_dist.storage.run_folder import to_json

        echo(to_json({"runs": figures, "differences": differences, "at_equal_tokens": rows}))
        return
    if not differences:
        echo("all settings are the same")
    at_once = max(1, ((columns() or FILE) - FIRST) // A_RUN)  # runs that fit side by side
    for start in range(0, len(targets), at_once):
        _print(
            slice(start, start + at_once), [str(run) for run in targets], differences, rows, figures
        )
    if plot is not None:
        echo(f"{plot} is drawn")
    if html is not None:
        echo(f"{html} is written")


def _print(
    these: slice,
    runs: list[str],
    differences: dict[str, list[Any]],
    rows: list[dict[str, Any]],
    figures: list[Any],
) -> None:
    """Print tables of some of the runs: settings, losses at equal tokens, where they stand."""
    names = runs[these]
    table = _table("setting", names)
    for name, values in differences.items():
        table.add_row(name, *("–" if value is None else str(value) for value in values[these]))
    if differences:
        echo_table(table)
    table = _table(
        "loss at tokens\n(train: mean since the row above)",
        [f"{name}\n{kind}" for name in names for kind in ("train", "val")],
    )
    for row in rows:
        pairs = zip(row["train_loss"][these], row["val_loss"][these], strict=True)
        table.add_row(f"{row['tokens']:,}", *(_loss(value) for pair in pairs for value in pair))
    echo_table(table)
    table = _table("in all", names)
    for key in (
        "step",
        "tokens",
        "val_loss",
        "best_val_loss",
        "bits_per_byte",
        "tokens_per_second",
        "verdict",
    ):
        table.add_row(key, *(_shown(one[key]) for one in figures[these]))
    echo_table(table)


def _table(first: str, others: list[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(first, box=box.SIMPLE_HEAD)
    for name in others:
        table.add_column(name, justify="right", min_width=8)
    return table


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value > 1000 else f"{value:.4f}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
