"""`nanogpt doctor`: what is wrong with this machine, and what to type."""

import os
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.options import Json, rank
from cli.terminal import columns, echo

if TYPE_CHECKING:
    from nanogpt_dist.doctor.check import Check

MARKS = {"ok": "ok", "warning": "WARNING", "error": "ERROR"}
NAME = 18  # columns of a finding's name


def doctor(json: Json = False) -> None:
    """Say what is wrong with this machine, and what to type to mend it.

    Python, torch, devices and their speed, memory, disk, limits, network, variables, the scheduler,
    the hub's cache. Takes some seconds, and no network but the host's own name and the proxies.

    Returns 0 where all is well, 1 with warnings, with an error that error's code. In ranks, also on
    several machines, `torchrun --nproc-per-node 2 nanogpt doctor` or `nanogpt launch
    --nproc-per-node 2 doctor` compares them, and measures their all-reduce.
    """
    from launch import network
    from nanogpt_dist.doctor.check import exit_code
    from nanogpt_dist.doctor.machine import Machine
    from nanogpt_dist.doctor.ranks import examine

    start = time.perf_counter()
    machine = Machine(os.environ, port_holder=network.holder)
    code = 0  # of the ranks that are silent: torchrun would end the one that speaks
    with examine(machine) as (checks, speaks):
        if speaks:
            code = exit_code(checks)
            seconds = time.perf_counter() - start
            if json:
                echo(as_json(checks, seconds))
            else:
                _print(checks, seconds)
    raise typer.Exit(_left(code))


def as_json(checks: "list[Check]", seconds: float) -> str:
    """The report as one JSON object."""
    from nanogpt_dist.doctor.check import exit_code
    from nanogpt_dist.storage.run_folder import to_json

    levels = [check.level for check in checks]
    return to_json(
        {
            "code": exit_code(checks),
            "errors": levels.count("error"),
            "warnings": levels.count("warning"),
            "checks": [{**asdict(check), "code": _code(check)} for check in checks],
            "seconds": round(seconds, 2),
        }
    )


def _code(check: "Check") -> int:
    return {"ok": 0, "warning": 1}.get(check.level, int(check.code))


def _print(checks: "list[Check]", seconds: float) -> None:
    """A line for each finding, and below it what to type."""
    import textwrap

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
    echo(f"\n{levels['ok']} ok, {', '.join(counts)} · {seconds:.1f} s")


def _left(code: int) -> int:
    """What this process returns; under `nanogpt launch` the verdict carries the code."""
    from launch import verdict

    if code and verdict.write(verdict.Verdict(code, "", rank(), agreed=True)):
        return 0
    return code
