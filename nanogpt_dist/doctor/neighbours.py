"""Who else takes this machine's cores. Linux alone tells; elsewhere nothing is said."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.cores import allowed_cores, listed_cores, usable_cores
from nanogpt_dist.doctor.machine import Machine, is_rank

SAMPLE_S = 0.5  # between two looks
BUSY = 0.2  # of a core, from which on a process is a neighbour
UNSEEN = 0.05  # of all cores' time: the kernel counts that of cores and of processes apart
NAMED = 3  # of them, the busiest
STEAL = 7  # of a line of /proc/stat: what other virtual machines took
WORKING = (0, 1, 2, STEAL)  # user, nice, system


@dataclass(frozen=True)
class Process:
    """A process as /proc/PID/stat has it; ticks: of processor time so far; ended: its children's.

    What a process took goes over to its parent's `ended` when it ends: the sum of all stays.
    """

    name: str
    parent: int
    ticks: int
    ended: int = 0


@dataclass(frozen=True)
class Look:
    """All processes, and the ticks of each core's work, those taken by other machines included."""

    processes: dict[int, Process]
    cores: dict[int, int]
    at: float


def check_neighbours(machine: Machine) -> Iterator[Check]:
    """Processes of others that take our cores: a loop in threads waits for the slowest of them.

    Their names alone are told, not their command lines, in which secrets may stand. A training of
    the same user is none of the others.
    """
    before = _look(machine)
    if not before.processes:
        return
    time.sleep(SAMPLE_S)
    after = _look(machine)
    shares = busy_shares(before.processes, after.processes, after.at - before.at)
    shares = {pid: share for pid, share in shares.items() if _is_on_ours(machine, pid, share)}
    family = _family(machine, after.processes, os.getpid())
    busy = {pid: share for pid, share in shares.items() if pid not in family and share >= BUSY}
    trainings = {pid for pid in busy if _is_of_a_training(machine, after.processes, pid)}
    cores = len(allowed_cores())
    if trainings:
        text = _named(after.processes, {pid: busy[pid] for pid in trainings})
        yield Check("neighbours", "ok", f"a training of ours computes here: {text}")
    others = {pid: share for pid, share in busy.items() if pid not in trainings}
    unseen = _unseen(machine, before, after)
    if others or unseen:
        yield _told(machine, after.processes, others, unseen)
    elif not trainings:
        text = f"nobody that is seen from here computes on the {cores} cores"
        yield Check("neighbours", "ok", text)


def _told(
    machine: Machine, found: dict[int, Process], others: dict[int, float], unseen: float
) -> Check:
    """The others, and whether they leave as many cores as we have threads."""
    cores, usable = len(allowed_cores()), usable_cores(machine)
    ranks = machine.local_ranks
    threads = machine.number("OMP_NUM_THREADS") or max(1, usable // ranks)
    taken = min(cores, sum(others.values()) + unseen)
    # time that a cgroup gives is shared within it alone
    ours = machine.read("proc/self/cgroup")
    within = sum(
        share for pid, share in others.items() if machine.read(f"proc/{pid}/cgroup") == ours
    )
    parts = []
    if others:
        parts.append(
            f"others take {min(cores, sum(others.values())):.1f} of {cores} cores: "
            f"{_named(found, others)}"
        )
    if unseen:
        parts.append(f"processes that cannot be seen from here take {unseen:.1f} of {cores} cores")
    left = min(cores - taken, usable - within)
    if ranks * threads <= left:
        return Check("neighbours", "ok", f"{'; '.join(parts)}; there are cores left")
    fewer = max(1, int(left) // ranks)
    instead = f"  # or export OMP_NUM_THREADS={fewer}" if fewer < threads else ""
    first = ",".join(map(str, _busiest(others)[:NAMED]))
    look = f"ps -o user,pid,ni,etime,args -p {first}" if first else "vmstat 1 5"
    return Check("neighbours", "warning", "; ".join(parts), f"{look}{instead}")


def _busiest(shares: dict[int, float]) -> list[int]:
    return sorted(shares, key=lambda pid: -shares[pid])


def _named(found: dict[int, Process], shares: dict[int, float]) -> str:
    first = _busiest(shares)
    listed = ", ".join(f"{found[pid].name} ({pid}) {shares[pid]:.1f}" for pid in first[:NAMED])
    return listed + (f" and {len(first) - NAMED} more" if len(first) > NAMED else "")


def _look(machine: Machine) -> Look:
    at = time.perf_counter()
    cores = {}
    for line in machine.read("proc/stat").splitlines():
        name, *fields = line.split()
        number = name.removeprefix("cpu")
        if number.isdecimal() and len(fields) > STEAL:
            cores[int(number)] = sum(int(fields[each]) for each in WORKING)
    return Look(processes(machine), cores, at)


def processes(machine: Machine) -> dict[int, Process]:
    """The processes below the root's /proc; {} where there is none."""
    found = {}
    for place in (machine.root / "proc").glob("[0-9]*"):
        # "12 (name, which may hold blanks and brackets) S 1 …"
        head, _, tail = machine.read(f"proc/{place.name}/stat").rpartition(")")
        fields = tail.split()
        if len(fields) > 14 and fields[1].isdecimal():
            name = "".join(char if char.isprintable() else "?" for char in head.partition("(")[2])
            own, ended = (int(fields[at]) + int(fields[at + 1]) for at in (11, 13))
            found[int(place.name)] = Process(name[:20], int(fields[1]), own, ended)
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


def _unseen(machine: Machine, before: Look, after: Look) -> float:
    """Cores of ours at work for none of the processes that are seen; 0 where that is little."""
    ours = allowed_cores() & before.cores.keys() & after.cores.keys()
    worked = sum(after.cores[core] - before.cores[core] for core in ours)
    seen = sum(each.ticks + each.ended for each in after.processes.values())
    seen -= sum(each.ticks + each.ended for each in before.processes.values())
    if not after.cores.keys() <= ours:  # some worked elsewhere, all the while
        seen -= sum(
            process.ticks - before.processes[pid].ticks
            for pid, process in after.processes.items()
            if pid in before.processes and not _is_on_ours(machine, pid, process.ticks)
        )
    cores = (worked - max(0, seen)) / os.sysconf("SC_CLK_TCK") / (after.at - before.at)
    return cores if cores > max(BUSY, UNSEEN * len(ours)) else 0.0


def _is_on_ours(machine: Machine, pid: int, share: float) -> bool:
    """Whether a process that works may do so on a core of ours; true where that is not told."""
    if not share:
        return True
    for line in machine.read(f"proc/{pid}/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return bool(allowed_cores() & listed_cores(line.partition(":")[2]))
    return True


def _family(machine: Machine, found: dict[int, Process], pid: int) -> set[int]:
    """`pid` with those above and below it; of a rank with the other ranks of its starter, too."""
    above, at = {pid}, pid
    while at in found and found[at].parent not in (0, *above):
        at = found[at].parent
        above.add(at)
    is_sibling = is_rank(machine.environment) and pid in found
    root = found[pid].parent if is_sibling else pid
    # 1 is in a pod torchrun itself, elsewhere what takes up all orphans
    below = {root} if root > 1 or (root == 1 and _is_training(machine, 1)) else {pid}
    while more := {one for one, process in found.items() if process.parent in below} - below:
        below |= more
    return above | below


def _is_of_a_training(machine: Machine, found: dict[int, Process], pid: int) -> bool:
    """Whether a process, or one above it, is a training of the same user: a worker counts."""
    passed: set[int] = set()
    while pid in found and pid not in passed:
        if _is_training(machine, pid):
            return True
        passed.add(pid)
        pid = found[pid].parent
    return False


def _is_training(machine: Machine, pid: int) -> bool:
    try:
        if (machine.root / f"proc/{pid}").stat().st_uid != os.geteuid():
            return False
    except OSError:  # it has ended
        return False
    words = machine.read(f"proc/{pid}/cmdline").split("\0")
    names = {os.path.basename(word) for word in words}
    if names & {"torchrun", "torch.distributed.run"}:
        return True
    return bool(names & {"nanogpt", "nanogpt_dist"}) and bool(names & {"train", "launch"})
