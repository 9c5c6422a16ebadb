"""Cores, and how many threads compute on them."""

import math
import os
from collections.abc import Iterator

from nanogpt_dist.doctor.cgroup import cpu_quota, cpuset, processes_left
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine

FEW_PROCESSES = 256  # that are left of a container's: a rank has some threads for each core
PINNING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def check_cores(machine: Machine) -> Iterator[Check]:
    """How many cores there are, may be used, and are used by how many threads."""
    there, allowed = os.cpu_count() or 1, len(allowed_cores())
    quota = cpu_quota(machine)
    if allowed == 1 < there:
        yield _of_one_core(machine, there)
    else:
        limit = "" if quota is None else f", time for {quota:g} by cgroup"
        yield Check("cores", "ok", f"{there}, of which {allowed} may be used{limit}")
    yield from _check_threads(machine, usable_cores(machine), allowed)
    yield from _check_processes(machine)


def allowed_cores() -> set[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable_cores(machine: Machine) -> int:
    """How many this process may run on, and has time for by its cgroup."""
    allowed, quota = len(allowed_cores()), cpu_quota(machine)
    return max(1, min(allowed, math.ceil(quota) if quota is not None else allowed))


def listed_cores(text: str) -> set[int]:
    """ "0-2,8" → {0, 1, 2, 8}."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _of_one_core(machine: Machine, there: int) -> Check:
    """Bound to one by the job, by a cgroup, or by this shell, which alone can undo it."""
    text = f"this process is bound to one of {there} cores"
    if "SLURM_JOB_ID" in machine.environment:
        node = machine.number("SLURM_CPUS_ON_NODE") or 1
        text += f"; the job has {node} on this node"
        more = f"srun --cpus-per-task={node} nanogpt doctor"
        return Check("cores", "warning", text, more if node > 1 else "salloc --cpus-per-task=CORES")
    may = cpuset(machine) or machine.read("sys/devices/system/cpu/online") or f"0-{there - 1}"
    if len(listed_cores(may)) < 2:
        return Check("cores", "ok", f"one of {there}: a cgroup gives no more")
    return Check("cores", "warning", text, f"taskset -pc {may} $$")


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
