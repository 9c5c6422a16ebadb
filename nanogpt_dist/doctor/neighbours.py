"""Who else takes this machine's cores. Linux alone tells; elsewhere nothing is said."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine

SAMPLE_S = 0.5  # between two looks
BUSY = 0.2  # of a core, from which on a process is a neighbour
NAMED = 3  # of them, the busiest
AUTOGROUP = "proc/sys/kernel/sched_autogroup_enabled"


@dataclass(frozen=True)
class Process:
    """A process as /proc/PID/stat has it; ticks: of processor time so far."""

    name: str
    parent: int
    ticks: int


def check_neighbours(machine: Machine) -> Iterator[Check]:
    """Processes of others that take cores: a loop in threads waits for the slowest of them.

    Their names alone are told, not their command lines, in which secrets may stand.
    """
    before = processes(machine)
    if not before:
        return
    start = time.perf_counter()
    time.sleep(SAMPLE_S)
    after = processes(machine)
    shares = busy_shares(before, after, time.perf_counter() - start)
    ours = _family(after, os.getpid(), machine.local_ranks > 1)
    busy = {pid: share for pid, share in shares.items() if pid not in ours and share >= BUSY}
    cores = os.cpu_count() or 1
    if not busy:
        yield Check("neighbours", "ok", f"nobody else computes on the {cores} cores")
        return
    taken = sum(busy.values())
    first = sorted(busy, key=lambda pid: -busy[pid])
    listed = ", ".join(f"{after[pid].name} ({pid}) {busy[pid]:.1f}" for pid in first[:NAMED])
    more = f" and {len(first) - NAMED} more" if len(first) > NAMED else ""
    text = f"others take {taken:.1f} of {cores} cores: {listed}{more}"
    yield Check("neighbours", "warning", text, _todo(machine, first[0], cores, taken))


def processes(machine: Machine) -> dict[int, Process]:
    """The processes below the root's /proc; {} where there is none."""
    found = {}
    for place in (machine.root / "proc").glob("[0-9]*"):
        # "12 (name, which may hold blanks and brackets) S 1 …"
        head, _, tail = machine.read(f"proc/{place.name}/stat").rpartition(")")
        fields = tail.split()
        if len(fields) > 12 and fields[1].isdecimal():
            name = "".join(char if char.isprintable() else "?" for char in head.partition("(")[2])
            ticks = int(fields[11]) + int(fields[12])
            found[int(place.name)] = Process(name[:20], int(fields[1]), ticks)
    return found


def busy_shares(
    before: dict[int, Process], after: dict[int, Process], seconds: float
) -> dict[int, float]:
    """Cores that each process took between two looks, `seconds` apart."""
    tick = os.sysconf("SC_CLK_TCK")
    return {
        pid: (process.ticks - before[pid].ticks) / tick / seconds
        for pid, process in after.items()
        if pid in before
    }


def _family(found: dict[int, Process], pid: int, siblings: bool) -> set[int]:
    """`pid` with those above and below it; siblings: with the other ranks of its torchrun, too."""
    above, at = {pid}, pid
    while at in found and found[at].parent not in (0, *above):
        at = found[at].parent
        above.add(at)
    roots = {found[pid].parent if siblings and pid in found else pid} - {0, 1}
    below = set(roots)
    while more := {one for one, process in found.items() if process.parent in below} - below:
        below |= more
    return above | below


def _todo(machine: Machine, pid: int, cores: int, taken: float) -> str:
    """Let the busiest give way, where it is ours; else compute on the cores that are left."""
    try:
        ours = os.geteuid() in (0, (machine.root / f"proc/{pid}").stat().st_uid)
    except OSError:  # it has ended
        ours = False
    if not ours:
        return f"export OMP_NUM_THREADS={max(1, cores - round(taken))}"
    if machine.read(AUTOGROUP) == "1":  # a session is weighed as one: its processes' nice is not
        return f"echo 19 > /proc/{pid}/autogroup"
    return f"renice -n 19 -p {pid}"
