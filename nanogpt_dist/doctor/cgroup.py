"""What a container or a job may use, in the kernel's files.

Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst (cpu.max, cpuset.cpus.effective),
cgroup-v1/cpusets.rst and Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from collections.abc import Iterator
from pathlib import Path

from nanogpt_dist import thread_limits
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.memory_limits import cgroup_folders


def cpu_quota(machine: Machine) -> float | None:
    """Cores' worth of time that this process may use; None: all of each core."""
    quotas = []
    for folder, version in _folders(machine, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota = _text(folder / "cpu.cfs_quota_us")
            period = _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cpuset(machine: Machine) -> str:
    """The cores that a process of this cgroup may be bound to, as "0-7"; "" where none is told."""
    for folder, version in _folders(machine, "cpuset"):
        name = "cpuset.cpus.effective" if version == 2 else "cpuset.effective_cpus"
        if cores := _text(folder / name):
            return cores
    return ""


def processes_left(machine: Machine) -> tuple[int, int] | None:
    """(processes and threads that there are, that there may be); None: without limit."""
    return thread_limits.processes_left(machine.root)


def _folders(machine: Machine, controller: str) -> Iterator[tuple[Path, int]]:
    base, own = machine.root / "sys/fs/cgroup", machine.root / "proc/self/cgroup"
    return cgroup_folders(controller, base, own)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
