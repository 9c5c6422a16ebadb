"""Cores, and how many threads compute on them."""

import math
import os
from collections.abc import Iterator

from nanogpt_dist.doctor.cgroup import cpu_quota, processes_left
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine

FEW_PROCESSES = 256  # that are left of a container's: a rank has some threads for each core
PINNING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def check_cores(machine: Machine) -> Iterator[Check]:
    """How many cores there are, may be used, and are used by how many threads."""
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = cpu_quota(machine)
    usable = max(1, min(allowed, math.ceil(quota) if quota is not None else allowed))
    if allowed == 1 < there:
        yield Check(
            "cores",
            "warning",
            f"this process is bound to one of {there} cores",
            f"taskset -pc 0-{there - 1} $$",
        )
    else:
        limit = "" if quota is None else f", time for {quota:g} by cgroup"
        yield Check("cores", "ok", f"{there}, of which {allowed} may be used{limit}")
    yield from _check_threads(machine, usable, allowed)
    yield from _check_processes(machine)


def _check_threads(machine: Machine, usable: int, allowed: int) -> Iterator[Check]:
    """OpenMP's threads wait for each other: more than there are cores slow each other tenfold."""
    ranks = machine.local_ranks
    each = max(1, usable // ranks)
    todo = f"export OMP_NUM_THREADS={each}"
    said, number = machine.environment.get("OMP_NUM_THREADS"), machine.number("OMP_NUM_THREADS")
    of = f"{ranks} ranks × " if ranks > 1 else ""
    if said is not None and not number:
        yield Check("threads", "warning", f"OMP_NUM_THREADS={said[:40]!r} is no number", todo)
    elif number and ranks * number > usable:
        text = f"{of}OMP_NUM_THREADS={number}, and {usable} cores: they wait for each other"
        yield Check("threads", "warning", text, todo)
    elif number is None and usable < allowed:
        text = f"torch would take {allowed} threads, a cgroup gives time for {usable}"
        yield Check("threads", "warning", text, todo)
    elif number and 2 * ranks * number < usable and not list(machine.root.glob("dev/nvidia[0-9]*")):
        text = (
            f"{of}OMP_NUM_THREADS={number} leaves {usable - ranks * number} of {usable} cores idle"
        )
        yield Check("threads", "warning", text, todo)
    else:
        yield Check("threads", "ok", f"{of}{number or each} on {usable} cores")
    pinned = [name for name in PINNING if machine.environment.get(name)]
    if ranks > 1 and pinned:
        text = f"{', '.join(pinned)}: may bind all {ranks} ranks to the same cores"
        yield Check("threads", "warning", text, f"unset {' '.join(pinned)}")


def _check_processes(machine: Machine) -> Iterator[Check]:
    found = processes_left(machine)
    if found is not None and found[1] - found[0] < FEW_PROCESSES:
        now, most = found
        text = f"{now:,} of {most:,} processes and threads of this container are taken"
        yield Check("processes", "warning", text, "docker run --pids-limit -1")
