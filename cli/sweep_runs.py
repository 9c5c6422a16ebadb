"""The runs of a sweep or a ladder, one `nanogpt train` after the other, and how they ended."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.options import note
from cli.terminal import echo
from launch.processes import run_and_pass_on
from launch.torchrun import python_path
from nanogpt_dist.errors import (
    INTERRUPTED,
    Exit,
    StoppedError,
    UsageError,
    error_of,
    one_line,
)
from nanogpt_dist.ladder.sweep import Sweep, SweepRun, state
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder


@dataclass(frozen=True)
class Failure:
    """A run that failed: its name, its exit code, its line, and what goes on with it."""

    run: str
    code: int
    message: str
    command: str


def arguments(sweep: Sweep, run: SweepRun, nproc_per_node: str | None) -> list[str]:
    """What stands behind `nanogpt` for one run; with ranks, a launcher's line."""
    ranks = ["launch", "--nproc-per-node", nproc_per_node] if nproc_per_node else []
    return [*ranks, *sweep.arguments(run)]


def command(sweep: Sweep, run: SweepRun, nproc_per_node: str | None) -> str:
    """The same as a line for a shell."""
    return shlex.join(["nanogpt", *arguments(sweep, run, nproc_per_node)])


def refuse_ranks() -> None:
    """Raises UsageError within torchrun: each run starts its own ranks."""
    if "RANK" in os.environ:
        raise UsageError(
            "this starts the ranks of each run: leave torchrun out, and add --nproc-per-node N"
        )


def make_runs(
    sweep: Sweep,
    runs: tuple[SweepRun, ...],
    nproc_per_node: str | None,
    fail_fast: bool,
) -> list[Failure]:
    """Make the runs that are not done, or go on with them; those that failed.

    Raises, before the first run, MissingInputError and BadDataError where one has no data;
    StoppedError on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1.
    """
    _refuse_missing_data(sweep, runs)
    failures: list[Failure] = []
    stop = StopRequest("stopped before the first run; the same command begins it").listen()
    for number, run in enumerate(runs, 1):
        where = f"run {number}/{len(runs)}"
        if _is_done(sweep, run):
            echo(f"{where} is done: {run.name}", err=True)
            continue
        line = command(sweep, run, nproc_per_node)
        echo(f"{where}: {run.name}\n$ {line}", err=True)
        stop.defer()
        status = sweep.folder(run) / "status.json"
        before = _written(status)
        code = Exit.STOPPED if stop else _make(arguments(sweep, run, nproc_per_node), stop)
        more = code != Exit.DONE or number < len(runs)
        if (stop and more) or code in (Exit.STOPPED, INTERRUPTED):
            _list(failures)
            raise StoppedError(f"stopped at {where}, {run.name}; the same command goes on")
        if code != Exit.DONE:
            # one that died early has left the words of an earlier attempt
            told = run_folder.read_status(sweep.folder(run)) if _written(status) != before else {}
            failures.append(Failure(run.name, code, told.get("message", ""), line))
            note(f"{run.name} failed with exit code {code}")
            if fail_fast:
                break
    return failures


def _is_done(sweep: Sweep, run: SweepRun) -> bool:
    return state(sweep.folder(run), sweep.config(run).max_iters) == "done"


def _refuse_missing_data(sweep: Sweep, runs: tuple[SweepRun, ...]) -> None:
    """Raises MissingInputError, BadDataError where a run that is not done has no data."""
    from nanogpt_dist.data import DataFolder

    waiting = [run for run in runs if not _is_done(sweep, run)]
    for dataset in sorted({sweep.config(run).dataset for run in waiting}):
        DataFolder.open(dataset)


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds; 0: never."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _make(given: list[str], stop: StopRequest) -> int:
    """Run `nanogpt GIVEN`; its exit code. What it prints goes to standard error."""
    sys.stderr.flush()
    line = [sys.executable, "-m", "nanogpt_dist", *given]
    return run_and_pass_on(
        line, {**os.environ, **python_path(os.environ)}, stdout=2, noticed=stop.ask
    )


def tell(failures: list[Failure]) -> None:
    """Tell which runs failed, with their exit codes and what to type; raises for the first."""
    if not failures:
        return
    _list(failures)
    first = failures[0]
    raise error_of(
        first.code,
        f"{len(failures)} of the runs failed, {first.run} with exit code {first.code}; mend it and "
        "type the same command again",
    )


def _list(failures: list[Failure]) -> None:
    for failure in failures:
        why = f" ({one_line(failure.message)})" if failure.message else ""
        echo(f"{failure.run} failed with exit code {failure.code}{why}; type:", err=True)
        echo(f"  {failure.command}", err=True)
