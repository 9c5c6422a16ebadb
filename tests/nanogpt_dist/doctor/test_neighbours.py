"""Who takes the cores is named, and who belongs to this process is not."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt_dist.doctor import cores, neighbours
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
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))  # more than it leaves
    [check] = [each for each in check_neighbours(Machine()) if "others take" in each.text]
    assert check.level == "warning"
    assert re.search(rf"others take .* cores: .*python\S* \({stranger}\)", check.text)
    assert f"({os.getpid()})" not in check.text
    assert re.match(r"ps -o user,pid,ni,etime,args -p \d+", check.todo)


def stat(root: Path, pid: int, parent: int, ticks: int, name: str = "python") -> None:
    """A /proc/PID/stat below `root`."""
    (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
    fields = ["S", str(parent), *"0" * 9, str(ticks), "0", "0", "0"]
    (root / f"proc/{pid}/stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


def of(root: Path, pid: int, *arguments: str, cores: str = "") -> None:
    """What a process was started by, and the cores that it may use."""
    (root / f"proc/{pid}/cmdline").write_text("\0".join(arguments) + "\0")
    if cores:
        (root / f"proc/{pid}/status").write_text(f"Name:\ta\nCpus_allowed_list:\t{cores}\n")


def looked_at(root: Path, busy: int, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which process `busy` takes a core between the two looks, a second apart."""
    times = iter(range(100))
    monkeypatch.setattr(neighbours.time, "perf_counter", lambda: float(next(times)))
    second = os.sysconf("SC_CLK_TCK")

    def a_second(seconds: float) -> None:
        if busy:
            old = (root / f"proc/{busy}/stat").read_text()
            name = old.partition("(")[2].rpartition(")")[0]
            parent = neighbours.processes(Machine(root=root))[busy].parent
            stat(root, busy, parent, second, name)
        if (root / "proc/stat").exists():
            (root / "proc/stat").write_text(cores_at_work(second))

    monkeypatch.setattr(neighbours.time, "sleep", a_second)
    return Machine(environment={}, root=root)


def cores_at_work(ticks: int) -> str:
    """A /proc/stat: core 0 has worked, core 1 has been idle."""
    return f"cpu  {ticks} 0 0 9 0 0 0 0\ncpu0 {ticks} 0 0 0 0 0 0 0\ncpu1 0 0 0 9 0 0 0 0\n"


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 128)


STRANGER = 4_000_001


@pytest.mark.usefixtures("two_cores")
def test_no_command_of_its_changes_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, os.getpid(), 1, 0)
    stat(tmp_path, STRANGER, 1, 0, name="postgres")
    machine = looked_at(tmp_path, STRANGER, monkeypatch)
    [check] = check_neighbours(machine)
    assert check.text == f"others take 1.0 of 2 cores: postgres ({STRANGER}) 1.0"
    look = f"ps -o user,pid,ni,etime,args -p {STRANGER}"
    assert check.todo == f"{look}  # or export OMP_NUM_THREADS=1"
    stat(tmp_path, STRANGER, 1, 0)
    [check] = check_neighbours(Machine({"OMP_NUM_THREADS": "1"}, root=tmp_path))
    assert (check.level, check.todo) == ("ok", "")  # a core is left for the one thread
    assert check.text.endswith("there are cores left")


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("line", ["nanogpt train a", "python -m torch.distributed.run nanogpt"])
def test_a_training_of_the_same_user_is_none_of_the_others(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, os.getpid(), 1, 0)
    stat(tmp_path, 4_000_000, 1, 0)
    of(tmp_path, 4_000_000, *line.split())
    stat(tmp_path, STRANGER, 4_000_000, 0)  # its worker
    machine = looked_at(tmp_path, STRANGER, monkeypatch)
    [check] = check_neighbours(machine)
    assert (check.level, check.todo) == ("ok", "")
    assert check.text == f"a training of ours computes here: python ({STRANGER}) 1.0"
    stat(tmp_path, STRANGER, 4_000_000, 0)
    mine = os.geteuid()
    monkeypatch.setattr(neighbours.os, "geteuid", lambda: mine + 1)  # for root, too
    [check] = check_neighbours(machine)
    assert check.level == "warning"


@pytest.mark.usefixtures("two_cores")
def test_who_computes_on_other_cores_is_no_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, os.getpid(), 1, 0)
    stat(tmp_path, STRANGER, 1, 0)
    of(tmp_path, STRANGER, "a", cores="2-127")
    machine = looked_at(tmp_path, STRANGER, monkeypatch)
    [check] = check_neighbours(machine)
    assert check.text == "nobody that is seen from here computes on the 2 cores"


@pytest.mark.usefixtures("two_cores")
def test_work_of_nobody_that_is_seen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, os.getpid(), 1, 0)
    (tmp_path / "proc/stat").write_text(cores_at_work(0))
    [check] = check_neighbours(looked_at(tmp_path, 0, monkeypatch))
    assert check.level == "warning"
    assert check.text == "processes that cannot be seen from here take 1.0 of 2 cores"
    assert check.todo == "vmstat 1 5  # or export OMP_NUM_THREADS=1"
    (tmp_path / "proc/stat").write_text(cores_at_work(0))
    [check] = check_neighbours(looked_at(tmp_path, os.getpid(), monkeypatch))
    assert check.level == "ok"  # it was this process


@pytest.mark.parametrize("pod", [True, False])
@pytest.mark.usefixtures("two_cores")
def test_ranks_of_a_torchrun_that_is_process_1_are_ours(
    pod: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat(tmp_path, 1, 0, 0)
    of(tmp_path, 1, *(["python", "/bin/torchrun", "nanogpt"] if pod else ["/sbin/init"]))
    stat(tmp_path, os.getpid(), 1, 0)
    stat(tmp_path, STRANGER, 1, 0)
    machine = looked_at(tmp_path, STRANGER, monkeypatch)
    [check] = check_neighbours(replace(machine, environment=RANK))
    assert (check.level, "nobody" in check.text) == (("ok", True) if pod else ("warning", False))


@pytest.mark.usefixtures("two_cores")
def test_other_tasks_of_a_job_step_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    slurm = {name: RANK[name] for name in names} | {"SLURM_PROCID": "0"}
    stat(tmp_path, os.getpid(), 70, 0)
    stat(tmp_path, 70, 1, 0, name="slurmstepd")
    stat(tmp_path, STRANGER, 70, 0)
    machine = looked_at(tmp_path, STRANGER, monkeypatch)
    [check] = check_neighbours(replace(machine, environment=slurm))
    assert "nobody" in check.text


@pytest.mark.usefixtures("two_cores")
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


@pytest.mark.usefixtures("two_cores")
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
