"""`nanogpt doctor [RUN]`: what is wrong with this machine or a run, and what to type."""

import os
import shlex
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json
from cli.terminal import columns, echo

if TYPE_CHECKING:
    from nanogpt_dist.doctor.check import Check

MARKS = {"ok": "ok", "warning": "WARNING", "error": "ERROR"}
NAME = 18  # columns of a finding's name
ARCHIVE = (".tar.gz", ".tgz")  # how a bundle's name ends


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completing.runs,
            help="A run folder, live or dead. Without one: this machine.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        bool,
        typer.Option("--bundle", help="Write all of it into one .tar.gz, without secrets."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tar.gz",
            help="Of --bundle. Default: nanogpt-doctor-DATE-TIME.tar.gz, here.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what is wrong with this machine, or with a run, and what to type to mend it.

    A machine: Python, torch, devices and their speed, memory, disk, limits, network, variables, the
    scheduler, the hub's cache. Takes some seconds, and no network but the host's own name and the
    proxies. A run: how it stands, its attempts, losses, throughput, disk use, checkpoints, what a
    resume would do, odd settings. Nothing is changed.

    Returns 0 where all is well, 1 with warnings, with an error that error's code. In ranks, also on
    several machines, `torchrun --nproc-per-node 2 nanogpt doctor` or `nanogpt launch
    --nproc-per-node 2 doctor` compares them, and measures their all-reduce.

    --bundle is for a report of a bug: findings of the machine and the run, versions, variables that
    matter, the run's settings and the ends of its metrics and logs. Tokens, keys, passwords and the
    user's name are left out, and so are data and weights.
    """
    from launch import network
    from nanogpt_dist.doctor.bundle import write_bundle
    from nanogpt_dist.doctor.check import exit_code
    from nanogpt_dist.doctor.check_machine import in_order
    from nanogpt_dist.doctor.machine import Machine
    from nanogpt_dist.doctor.ranks import examine
    from nanogpt_dist.doctor.run_checks import check_run
    from nanogpt_dist.errors import UsageError
    from nanogpt_dist.inspect.run_record import is_run
    from nanogpt_dist.storage.durable import shown

    if out is not None and not bundle:
        raise UsageError("--out names the file of --bundle: add --bundle, or leave --out out")
    if out is not None and not out.name.lower().endswith(ARCHIVE) and not out.is_dir():
        named = shlex.quote(str(out.with_suffix(ARCHIVE[0])))
        raise UsageError(f"--out {shown(out)}: a bundle is a gzipped tar; type --out {named}")
    start = time.perf_counter()
    machine = Machine(os.environ, port_holder=network.holder)
    if run is not None and machine.rank == 0 and not is_run(run):
        check_run(run)  # says so at once
    nothing: tuple[list[Check], bool] = (
        [],
        machine.rank == 0,
    )  # of the machine, where a run is named
    code = 0  # of the ranks that are silent: torchrun would end the one that speaks
    with examine(machine) if run is None or bundle else nullcontext(nothing) as (checks, speaks):
        if speaks:
            if run is not None and machine.rank == 0:
                # now that all have met: a large checkpoint takes longer than they wait for rank 0
                checks = [*checks, *check_run(run)]
            checks = in_order(checks)
            code = exit_code(checks)
            report = as_report(checks, run, time.perf_counter() - start)
            if bundle:
                file = out or Path(time.strftime("nanogpt-doctor-%Y%m%d-%H%M%S.tar.gz"))
                write_bundle(file, report, machine, run)
                report["bundle"] = str(file)
            _print(checks, report, json)
    raise typer.Exit(_left(code))


def as_report(checks: "list[Check]", run: Path | None, seconds: float) -> dict[str, Any]:
    """What --json prints."""
    from nanogpt_dist.doctor.check import exit_code

    levels = Counter(check.level for check in checks)
    return {
        "code": exit_code(checks),
        "errors": levels["error"],
        "warnings": levels["warning"],
        "run": None if run is None else str(run),
        "checks": [{**asdict(check), "code": _code(check)} for check in checks],
        "seconds": round(seconds, 2),
        "bundle": None,
    }


def _code(check: "Check") -> int:
    return {"ok": 0, "warning": 1}.get(check.level, int(check.code))


def _print(checks: "list[Check]", report: dict[str, Any], json: bool) -> None:
    """A line for each finding, and below it what to type."""
    import textwrap

    from nanogpt_dist.storage.run_folder import to_json

    if json:
        echo(to_json(report))
        return
    width = columns()
    for check in checks:
        line = f"{MARKS[check.level]:<8}{check.name:<{NAME}}{check.text}"
        indent = " " * (8 + NAME)
        lines = textwrap.wrap(line, width, subsequent_indent=indent) if width else [line]
        echo("\n".join(lines))
        if check.todo:  # whole, so that it can be copied
            echo(f"{'':8}type: {check.todo}")
    levels = Counter(check.level for check in checks)
    counts = [f"{levels[each]} {each}{'s' * (levels[each] != 1)}" for each in ("warning", "error")]
    echo(f"\n{levels['ok']} ok, {', '.join(counts)} · {report['seconds']:.1f} s")
    if report["bundle"]:
        echo(f"{report['bundle']} is written, without secrets; look through it before you send it")


def _left(code: int) -> int:
    """What this process returns; under `nanogpt launch` the verdict carries the code."""
    from launch import verdict

    if code and verdict.write(verdict.Verdict(code, "", 0, agreed=True)):
        return 0
    return code
