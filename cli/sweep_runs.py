"""The runs of a sweep or a ladder, one `nanogpt train` after the other, and how they ended."""

import os
import shlex
import sys
from dataclasses import dataclass

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
    again: str,
) -> list[Failure]:
    """Make the runs that are not done, or go on with them; those that failed.

    again: the command that goes on. Raises StoppedError on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1.
    """
    failures: list[Failure] = []
    stop = StopRequest(f"stopped before the first run; type: {again}").listen()
    for number, run in enumerate(runs, 1):
        folder = sweep.folder(run)
        if state(folder, sweep.config(run).max_iters) == "done":
            echo(f"run {number}/{len(runs)} is done: {run.name}", err=True)
            continue
        line = command(sweep, run, nproc_per_node)
        echo(f"run {number}/{len(runs)}: {run.name}\n$ {line}", err=True)
        stop.defer()
        code = _make(arguments(sweep, run, nproc_per_node), stop)
        more = code != Exit.DONE or number < len(runs)
        if (stop and more) or code in (Exit.STOPPED, INTERRUPTED):
            raise StoppedError(f"stopped in run {number}/{len(runs)}, {run.name}; type: {again}")
        if code != Exit.DONE:
            message = run_folder.read_json(folder / "status.json").get("message", "")
            failures.append(Failure(run.name, code, message, line))
            note(f"{run.name} failed with exit code {code}")
            if fail_fast:
                break
    return failures


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
    for failure in failures:
        why = f" ({one_line(failure.message)})" if failure.message else ""
        echo(f"{failure.run} failed with exit code {failure.code}{why}; type:", err=True)
        echo(f"  {failure.command}", err=True)
    first = failures[0]
    raise error_of(
        first.code,
        f"{len(failures)} of the runs failed, {first.run} with exit code {first.code}; mend it and "
        "type the same command again",
    )
