"""What bounds a process's memory: cgroups of both versions, and rlimits."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_dist.memory_limits import cgroup_room_bytes, rlimit_room_bytes, room_bytes

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("entry", "base", "names"), [("0::/job/step", ".", V2), ("4:memory:/job/step", "memory", V1)]
)
def test_a_cgroups_room_is_what_its_processes_have_left_but_for_caches(
    entry: str, base: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(f"{entry}\n")
    job = tmp_path / "fs" / base / "job"
    (job / "step").mkdir(parents=True)

    def room() -> int | None:
        return cgroup_room_bytes(tmp_path / "fs", tmp_path / "own")

    assert room() is None
    limit, used, files = names
    (job / limit).write_text("1000\n")
    (job / used).write_text("700\n")
    assert room() == 300
    (job / "memory.stat").write_text(f"anon 500\n{files} 150\n")
    assert room() == 450
    (job / "step" / limit).write_text("max\n")
    (job / "step" / used).write_text("200\n")
    assert room() == 450
    (job / "step" / limit).write_text("400\n")  # the narrowest decides
    assert room() == 200


CHILD = """
import resource, sys
from nanogpt_dist.memory_limits import STATUS, rlimit_room_bytes, room_bytes
limit, field = {"AS": (resource.RLIMIT_AS, "VmSize:"), "DATA": (resource.RLIMIT_DATA, "VmData:")}[
    sys.argv[1]
]
used = next(int(line.split()[1]) * 1024 for line in STATUS.open() if line.startswith(field))
resource.setrlimit(limit, (used + 2**28, used + 2**28))
print(rlimit_room_bytes(), room_bytes(1), room_bytes(10**6))
"""


@pytest.mark.parametrize("name", ["AS", "DATA"])
def test_an_rlimits_room_is_of_each_process(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, name], capture_output=True, text=True)
    own, alone, among_many = map(int, done.stdout.split())
    assert 2**28 - 2**22 < own <= 2**28, done.stderr
    assert alone == own
    assert among_many < 10**6  # the machine's is shared


def test_without_limits_the_machines_free_memory_is_shared() -> None:
    assert rlimit_room_bytes() is None
    room, half = room_bytes(1), room_bytes(2)
    assert room is not None
    assert half is not None
    assert 0.8 * room < 2 * half < 1.2 * room


def test_what_the_system_does_not_say_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_room_bytes(tmp_path, tmp_path / "none") is None
    assert rlimit_room_bytes(tmp_path / "none") is None
