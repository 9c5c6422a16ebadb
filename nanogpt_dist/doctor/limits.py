"""What the shell and the system let one process have: ulimit, umask."""

import os
import resource
from collections.abc import Iterator

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.errors import Exit

OPEN_FILES, WANTED_FILES = 1024, 65536  # that a rank needs, and that are usual on a cluster
PROCESSES = 1024  # threads count as such: each rank has some for each core
STACK_BYTES = 1 << 20
NONE = resource.RLIM_INFINITY


def check_limits(machine: Machine) -> Iterator[Check]:
    """Open files, a file's size, memory, processor time, processes, stack, umask."""
    bad = [*_of_memory(), *_of_counts(), *_of_infiniband(machine), *_of_umask()]
    yield from bad
    if not bad:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        core = resource.getrlimit(resource.RLIMIT_CORE)[0]
        dumps = "none" if core == 0 else "whole" if core == NONE else f"up to {core:,} bytes"
        text = (
            f"{shown(files)} open files; memory, file size, time without limit; core dumps: {dumps}"
        )
        yield Check("limits", "ok", text)


def _of_memory() -> Iterator[Check]:
    """Limits that end a run in the middle: of address space, data, a file's size, time."""
    for name, flag, of_what in (("AS", "v", "address space"), ("DATA", "d", "data")):
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        if soft != NONE:
            text = f"{of_what} is limited to {soft / 1e9:,.1f} GB, mapped files and CUDA's included"
            yield Check(of_what, "warning", text, _unlimit(flag, name.lower(), hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != NONE:
        text = (
            f"a file may have {soft / 1e9:,.3f} GB: a larger checkpoint or shard ends the process"
        )
        yield Check("file size", "error", text, _unlimit("f", "fsize", hard), Exit.IO_ERROR)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if soft != NONE:
        text = f"a process is killed after {soft:,} s of processor time, as on a login node"
        todo = f"{_unlimit('t', 'cpu', hard)}  # or run it in a job"
        yield Check("processor time", "warning", text, todo)


def _unlimit(flag: str, name: str, hard: int) -> str:
    """The line that takes a limit away: the shell may not go beyond the hard one."""
    if hard == NONE:
        return f"ulimit -{flag} unlimited"
    return f"sudo prlimit --{name}=unlimited --pid $$"


def _of_counts() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != NONE and soft < OPEN_FILES:
        text = f"{soft:,} open files at most: shards, workers and connections take more"
        yield Check(
            "open files", "warning", text, _raise("n", "nofile", OPEN_FILES, WANTED_FILES, hard)
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != NONE and soft < PROCESSES:
        text = f"{soft:,} processes and threads of this user at most"
        yield Check(
            "processes", "warning", text, _raise("u", "nproc", PROCESSES, 4 * PROCESSES, hard)
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != NONE and soft < STACK_BYTES:
        text = f"a stack of {soft // 1024:,} KiB: compiling may end by a signal"
        raised = _may(8 * STACK_BYTES, hard)
        todo = "ulimit -s 8192" if raised else "sudo prlimit --stack=8388608 --pid $$"
        yield Check("stack", "warning", text, todo)


def _raise(flag: str, name: str, needed: int, wanted: int, hard: int) -> str:
    """The line that raises a limit to what is wanted, or as far as the shell may."""
    if _may(needed, hard):
        return f"ulimit -{flag} {wanted if _may(wanted, hard) else hard}"
    return f"sudo prlimit --{name}={wanted} --pid $$"


def _may(wanted: int, hard: int) -> bool:
    return hard == NONE or wanted <= hard


def _of_infiniband(machine: Machine) -> Iterator[Check]:
    """NCCL registers its buffers with InfiniBand, which locks them in memory."""
    cards = sorted(path.name for path in (machine.root / "sys/class/infiniband").glob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if cards and soft != NONE:
        text = f"{soft / 1e6:,.1f} MB may be locked in memory: too few for NCCL over {cards[0]}"
        todo = (
            "ulimit -l unlimited"
            if hard == NONE
            else "sudo prlimit --memlock=unlimited --pid $$  # in a container: --ulimit memlock=-1"
        )
        yield Check("locked memory", "warning", text, todo)


def _of_umask() -> Iterator[Check]:
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o700:
        text = f"umask {mask:03o}: what a run writes, not even its owner may read or enter"
        yield Check("umask", "error", text, "umask 022", Exit.CANNOT_CREATE)


def shown(limit: int) -> str:
    """A limit for people."""
    return "unlimited" if limit == NONE else f"{limit:,}"
