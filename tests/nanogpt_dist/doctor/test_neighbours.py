"""Who takes the cores is named, and who belongs to this process is not."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt_dist.doctor import neighbours
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.neighbours import check_neighbours

RANK = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
RANK |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is always busy, and no child of this one."""
    code = "import os, sys\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\n"
    code += "while True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        pid = int(made.stdout.readline())
        made.wait()
        yield pid
        os.kill(pid, 9)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_busy_neighbour_is_named(stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BUSY", 0.02)  # others may leave it little
    monkeypatch.setattr(neighbours, "NAMED", 1000)
    [check] = check_neighbours(Machine())
    assert check.level == "warning"
    assert re.search(rf"others take .* cores: .*python\S* \({stranger}\)", check.text)
    assert f"({os.getpid()})" not in check.text
    assert re.fullmatch(
        r"echo 19 > /proc/\d+/autogroup|renice -n 19 -p \d+|export OMP_NUM_THREADS=\d+", check.todo
    )


def stat(root: Path, pid: int, parent: int, ticks: int, name: str = "python") -> None:
    """A /proc/PID/stat below `root`."""
    (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
    fields = ["S", str(parent), *"0" * 9, str(ticks), "0", "0"]
    (root / f"proc/{pid}/stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


def looked_at(root: Path, busy: int, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which process `busy` takes a core between the two looks."""

    def a_second(seconds: float) -> None:
        stat(root, busy, neighbours.processes(Machine(root=root))[busy].parent, 10_000)

    monkeypatch.setattr(neighbours.time, "sleep", a_second)
    return Machine(environment={}, root=root)


@pytest.mark.parametrize("parent", ["above", "below", "sibling"])
def test_who_belongs_to_this_process_is_no_neighbour(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getpid()
    stat(tmp_path, me, 70, 0)
    stat(tmp_path, 70, 1, 0)
    busy = {"above": 70, "below": 4_000_001, "sibling": 4_000_002}[parent]
    if busy != 70:
        stat(tmp_path, busy, me if parent == "below" else 70, 0)
    machine = looked_at(tmp_path, busy, monkeypatch)
    [check] = check_neighbours(machine)
    assert check.level == ("warning" if parent == "sibling" else "ok")
    stat(tmp_path, busy, neighbours.processes(machine)[busy].parent, 0)
    [check] = check_neighbours(Machine(environment=RANK, root=tmp_path))
    assert check.level == "ok"  # in ranks the others of this machine are ours


def test_a_name_cannot_write_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, os.getpid(), 1, 0)
    stat(tmp_path, 4_000_001, 1, 0, name="a) \x1b[2J (b")
    [check] = check_neighbours(looked_at(tmp_path, 4_000_001, monkeypatch))
    assert check.level == "warning"
    assert check.text.isprintable()


def test_nothing_is_said_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert list(check_neighbours(Machine(root=tmp_path))) == []
