"""`nanogpt sweep`: a grid or a list of settings, each a run, and which of them is best."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import launch_jobs, sweep_runs
from cli.options import Json, note, takes_settings
from cli.terminal import echo, echo_table
from launch import job_options
from nanogpt_dist.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from nanogpt_dist.ladder.results import RunResult
    from nanogpt_dist.ladder.sweep import Sweep

NprocPerNode = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="Ranks of each run, through torchrun; unset: one process, without."
    ),
]
Only = Annotated[
    str | None,
    typer.Option(metavar="N|NAME", help="Make one run: its number, from 0, or its name."),
]
TableOnly = Annotated[
    bool, typer.Option("--table", help="Make no run; print what is there, also while others run.")
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg|FILE.png", help="Draw the results (needs the extra `plot`)."),
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="Stop at the first run that fails; else others go on.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the commands, or the job file, and run nothing.")
]
HEADERS = ("steps", "parameters", "tokens", "seconds", "FLOPs", "val loss", "best", "bits/byte")


@takes_settings(job_options.JobOptions, groups=(job_options.JOBS, job_options.SLURM))
def sweep(
    settings: dict[str, Any],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.toml", help="A preset, shared settings, a grid, runs."),
    ],
    nproc_per_node: NprocPerNode = None,
    only: Only = None,
    table: TableOnly = False,
    plot: Plot = None,
    fail_fast: FailFast = False,
    nnodes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Nodes of each run, with --slurm.")
    ] = 1,
    slurm: launch_jobs.Slurm = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make several runs, one after the other or as a Slurm array, and compare them.

    FILE.toml names a preset, settings that all runs share, and what differs: its table `grid` lists
    values, all combinations of which are made; each table `run` is one run more. A run is a folder
    of its own below `out`, by default out/sweeps/FILE, made by `nanogpt train`.

    Type the same again to go on: runs that are done are skipped, others resumed.
    """
    from nanogpt_dist.ladder.sweep import read

    sweep_runs.refuse_ranks()
    launch_jobs.check(settings, slurm, False, None, None)
    found = read(file)
    if slurm:
        if only or table or plot or fail_fast or json:
            raise UsageError(
                "--slurm submits all runs: leave out --only, --table, --plot, "
                "--fail-fast and --json"
            )
        _submit(found, file, settings, nnodes, nproc_per_node or "1", dry_run)
        return
    if nnodes > 1:
        raise UsageError(f"--nnodes {nnodes} is for job files: add --slurm, or leave it out")
    runs = (found.chosen(only),) if only else found.runs
    if dry_run:
        for run in runs:
            echo(sweep_runs.command(found, run, nproc_per_node))
        return
    refuse_undrawable(plot)
    failures = [] if table else sweep_runs.make_runs(found, runs, nproc_per_node, fail_fast)
    _report(found, plot, json)
    sweep_runs.tell(failures)


def _submit(
    found: "Sweep",
    file: Path,
    settings: dict[str, Any],
    nnodes: int,
    nproc_per_node: str,
    dry_run: bool,
) -> None:
    """Hand the runs over to Slurm, each as a task of an array."""
    tasks = tuple(found.arguments(run) for run in found.runs)
    on_gpus = [run for run in found.runs if found.config(run).device != "cpu"]
    if "gpus_per_node" not in settings and not on_gpus:
        settings["gpus_per_node"] = 0
    settings.setdefault("job_name", job_options.default_name(["sweep", str(file)]))
    timeout_s = 60  # nanogpt launch's --shutdown-timeout
    # all tasks get the GPUs of this one
    largest = found.arguments((on_gpus or found.runs)[0])
    job = job_options.make(
        nnodes, nproc_per_node, largest, settings, 0, timeout_s, Path(os.getcwd())
    )
    launch_jobs.hand_over(replace(job, tasks=tasks), True, dry_run)
    if not dry_run:
        echo(f"Next: {shlex.join(['nanogpt', 'sweep', str(file), '--table'])}")


def _report(found: "Sweep", plot: Path | None, as_json: bool) -> None:
    """Print how the runs stand, best first, and their losses at equal budgets; draw them."""
    from nanogpt_dist.ladder import results

    all_runs = results.best_first(results.read(found))
    equal = results.at_equal(all_runs)
    if as_json:
        from nanogpt_dist.storage.run_folder import to_json

        told = [results.figures(one) for one in all_runs]
        echo(to_json({"out": str(found.out), "runs": told, "at_equal": equal}))
    else:
        echo_table(runs_table(all_runs), spare=("best", "parameters"))
        _print_equal(all_runs, equal)
    if not results.share_windows(all_runs):
        note(
            "eval_iters × batch_size or block_size differ, so val losses are over other windows of "
            "the val split; nanogpt eval RUN reads all of it"
        )
    if plot is not None:
        from nanogpt_dist.ladder.plots import plot_sweep

        plot_sweep(all_runs, plot)
        if not as_json:
            echo(f"{plot} is drawn")


def refuse_undrawable(plot: Path | None) -> None:
    """Raises ConfigError, CannotCreateError where --plot cannot be drawn once runs are made."""
    if plot is not None:
        from nanogpt_dist.ladder import plots

        plots.refuse_undrawable(plot)


def runs_table(all_runs: list["RunResult"], names_tell: bool = False) -> "Table":
    """A line for each run; names_tell: what differs needs no column."""
    from nanogpt_dist.ladder.results import figures
    from nanogpt_dist.ladder.sweep import name_of

    named = not names_tell and any(one.run.name != name_of(one.run.differs) for one in all_runs)
    table = _table(["run", *(["what differs"] if named else []), *HEADERS, "state"])
    for one in all_runs:
        told = figures(one)
        differs = [name_of(one.run.differs).replace(",", ", ")] if named else []
        table.add_row(
            one.run.name,
            *differs,
            f"{told['step']:,}",
            *(count(told[name]) for name in ("parameters", "tokens")),
            seconds(told["seconds"]),
            "–" if told["flops"] is None else f"{told['flops']:.3g}",
            *(loss(told[name]) for name in ("val_loss", "best_val_loss", "bits_per_byte")),
            one.state,
        )
    return table


def _print_equal(all_runs: list["RunResult"], equal: dict[str, dict[str, Any]]) -> None:
    """Print val losses at the largest budget that all runs have spent."""
    evaluated = [number for number, one in enumerate(all_runs) if one.evaluated]
    amounts = {
        "tokens": lambda amount: f"{amount:,.0f} tokens",
        "seconds": lambda amount: f"{amount:,.1f} seconds",
        "flops": lambda amount: f"{amount:.3g} FLOPs",
    }
    known = [budget for budget in amounts if equal[budget]["amount"] is not None]
    if len(evaluated) < 2 or not known:
        return
    table = _table(["val loss after", *(amounts[name](equal[name]["amount"]) for name in known)])
    for number in evaluated:
        losses = (loss(equal[name]["val_loss"][number]) for name in known)
        table.add_row(all_runs[number].run.name, *losses)
    echo_table(table)


def _table(headers: list[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        left = header in ("run", "what differs", "state", "val loss after")
        table.add_column(header, justify="left" if left else "right")
    return table


def count(value: float | None) -> str:
    """A number of things, for a table."""
    return "–" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Seconds, for a table."""
    return "–" if value is None else f"{value:,.1f}"


def loss(value: float | None) -> str:
    """A loss, for a table."""
    return "–" if value is None else f"{value:.4f}"
