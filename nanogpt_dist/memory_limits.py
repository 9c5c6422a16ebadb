"""What bounds a process's memory beside the machine: cgroups, and its own rlimits. No torch.

Sources: kernel.org, Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current,
memory.stat) and cgroup-v1/memory.rst; man-pages, setrlimit(2); proc_pid_status(5).
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
# of a version of cgroups: the limit, what is in use, and in memory.stat files that give way
V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
# an rlimit, and what the kernel counts against it
RLIMITS = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))


def memory_limit_bytes(root: Path = ROOT, own: Path = OWN) -> int | None:
    """The smallest cgroup memory limit of this process; None: no limit."""
    limits = (_number(folder / names[0]) for folder, names in _cgroups(root, own))
    return min((limit for limit in limits if limit is not None), default=None)


def cgroup_room_bytes(root: Path = ROOT, own: Path = OWN) -> int | None:
    """What the cgroups of this process may still take, with all that is in them; None: no limit.

    Cached files do not count: they give way.
    """
    rooms = []
    for folder, (limit, used, files) in _cgroups(root, own):
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None:
            caches = _fields(folder / "memory.stat")
            rooms.append(most - now + sum(caches.get(name, 0) for name in files))
    return min(rooms, default=None)


def rlimit_room_bytes(status: Path = STATUS) -> int | None:
    """What this process may still take by `ulimit -v` and `ulimit -d`; None: no limit.

    Address space counts, also what is reserved alone: threads' stacks, malloc's arenas.
    """
    used = _fields(status, 1024)
    limits = [(resource.getrlimit(limit)[0], used.get(name)) for limit, name in RLIMITS]
    rooms = [
        limit - now for limit, now in limits if limit != resource.RLIM_INFINITY and now is not None
    ]
    return min(rooms, default=None)


def room_bytes(processes: int) -> int | None:
    """Memory that this process may still take, where `processes` such share the machine's.

    None where the system does not say.
    """
    free = _fields(MEMINFO, 1024).get("MemAvailable")
    shared = [room for room in (free, cgroup_room_bytes()) if room is not None]
    rooms = [room // processes for room in shared]
    if (own := rlimit_room_bytes()) is not None:
        rooms.append(own)
    return max(0, min(rooms)) if rooms else None


def _cgroups(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """The folders of the cgroups that bound this process's memory, and their files' names."""
    for folder, version in cgroup_folders("memory", root, own):
        yield folder, V1 if version == 1 else V2


def cgroup_folders(
    controller: str, root: Path = ROOT, own: Path = OWN
) -> Iterator[tuple[Path, int]]:
    """The folders that limit this process, the innermost first, with their version of cgroups."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        place = top / path.lstrip("/")
        for folder in [place, *place.parents]:
            yield folder, 1 if controllers else 2
            if folder == top:
                break


def _number(path: Path) -> int | None:
    """The number in `path`; None where there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path, unit: int = 1) -> dict[str, int]:
    """Lines of a name and a number of `unit` bytes."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, *rest = line.split()
            if rest and rest[0].isdecimal():
                found[name.rstrip(":")] = int(rest[0]) * unit
    return found
