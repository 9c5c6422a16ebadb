"""What bounds a process's threads: cgroups, limits of the user and the system. No torch. Linux.

A library that cannot make a thread may end the whole process, as libgomp does: who makes threads
beside those that are needed looks first whether there is ample room.

Sources: kernel.org, Documentation/admin-guide/cgroup-v2.rst (pids.max); man-pages, setrlimit(2),
proc_sys_kernel(5) (threads-max, pid_max), proc_sys_vm(5) (overcommit_memory), proc_loadavg(5).
"""

import contextlib
import os
import resource
from pathlib import Path

from nanogpt_dist.memory_limits import cgroup_folders, rlimit_room_bytes

SPARE_THREADS = 512  # that are to be left for all others
SHARE = 0.5  # of a limit for the whole user, since processes of other containers count unseen
RANKS = 16  # of this machine, which may all make such threads at the same moment
SPARE_BYTES = 4 << 30
THREAD_BYTES = (8 + 128) << 20  # a stack, and what malloc reserves at the thread's first call


def threads_fit(more: int, root: Path = Path("/")) -> bool:
    """Whether `more` threads fit into this process with ample room left."""
    wanted = RANKS * more + SPARE_THREADS
    if (found := processes_left(root)) is not None and found[1] - found[0] < wanted:
        return False
    there = _text(root / "proc/loadavg").rpartition("/")[2].split(" ")[0]
    of_all = int(there) if there.isdecimal() else None
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    share = SHARE * limit - wanted  # all that there may be so far
    finite = limit != resource.RLIM_INFINITY
    if finite and (of_all is None or of_all > share) and threads_of_user(root) > share:
        return False
    for name in ("threads-max", "pid_max"):
        most = _text(root / "proc/sys/kernel" / name)
        if of_all is not None and most.isdecimal() and of_all + wanted > int(most):
            return False
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    each = THREAD_BYTES + (stack if stack != resource.RLIM_INFINITY else 0)
    rooms = (rlimit_room_bytes(root / "proc/self/status"), _commit_room_bytes(root))
    return all(room is None or room >= more * each + SPARE_BYTES for room in rooms)


def processes_left(root: Path = Path("/")) -> tuple[int, int] | None:
    """(processes and threads that there are, that there may be); None: without limit."""
    found = []
    for folder, _ in cgroup_folders("pids", root / "sys/fs/cgroup", root / "proc/self/cgroup"):
        now, most = _text(folder / "pids.current"), _text(folder / "pids.max")
        if now.isdecimal() and most.isdecimal():
            found.append((int(now), int(most)))
    return min(found, key=lambda pair: pair[1] - pair[0], default=None)


def threads_of_user(root: Path = Path("/")) -> int:
    """Threads of this process's user, as far as they are seen from here."""
    total = 0
    for folder in (root / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if folder.stat().st_uid == os.getuid():
                total += len(os.listdir(folder / "task"))
    return total


def _commit_room_bytes(root: Path) -> int | None:
    """What may still be reserved where the system promises no more than it has; else None."""
    if _text(root / "proc/sys/vm/overcommit_memory") != "2":
        return None
    lines = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    kb = {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
    return (kb.get("CommitLimit:", 0) - kb.get("Committed_AS:", 0)) * 1024


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
