"""Faults of machines that are not this one: their files below a folder, their variables given."""

import json
import resource
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanogpt_dist.doctor import (
    clock,
    cores,
    disk,
    gpus,
    installation,
    limits,
    network,
    ranks,
    scheduler,
    variables,
)
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.check_machine import Theme, in_order, look
from nanogpt_dist.doctor.machine import Machine, is_rank
from nanogpt_dist.errors import Exit

TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
RANKS = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


def bad(theme: Theme, machine: Machine) -> list[tuple[str, str, str, str]]:
    """What is not well: name, level, text, what to type."""
    return [
        (each.name, each.level, each.text, each.todo)
        for each in theme(machine)
        if each.level != "ok"
    ]


def made(root: Path, **files: str) -> Machine:
    """A machine with these files; __ in a name is /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine({}, root=root)


def test_a_container_with_time_for_fewer_cores_than_it_sees(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    machine = made(
        tmp_path,
        proc__self__cgroup="0::/job/step",
        **{"sys__fs__cgroup__job__cpu.max": "800000 100000"},
    )
    [(name, level, text, todo)] = bad(cores.check_cores, machine)
    assert (name, level, todo) == ("threads", "warning", "export OMP_NUM_THREADS=8")
    assert text == "torch would take 64 threads, a cgroup gives time for 8"
    given = replace(machine, environment={"OMP_NUM_THREADS": "8"})
    assert bad(cores.check_cores, given) == []


def test_a_container_of_the_older_kind_and_few_processes_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    place = "sys__fs__cgroup__"
    machine = made(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/docker/a\n3:pids:/docker/a\n0::/",
        **{
            f"{place}cpu__docker__a__cpu.cfs_quota_us": "200000",
            f"{place}cpu__docker__a__cpu.cfs_period_us": "100000",
            f"{place}pids__docker__a__pids.current": "450",
            f"{place}pids__docker__a__pids.max": "512",
        },
    )
    found = bad(cores.check_cores, machine)
    assert [(name, todo) for name, _, _, todo in found] == [
        ("threads", "export OMP_NUM_THREADS=2"),
        ("processes", "docker run --pids-limit -1"),
    ]
    assert "450 of 512" in found[1][2]


def test_ranks_with_too_many_or_too_few_threads_or_bound_to_the_same_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    for number in ("1", "16"):
        given = {**RANKS, "OMP_NUM_THREADS": number, "OMP_PROC_BIND": "close"}
        found = bad(cores.check_cores, Machine(given, root=tmp_path))
        assert [todo for *_, todo in found] == [
            *("export OMP_NUM_THREADS=8", "unset OMP_PROC_BIND")
        ]
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()  # where it is the GPU that computes
    few = Machine({**RANKS, "OMP_NUM_THREADS": "1"}, root=tmp_path)
    assert bad(cores.check_cores, few) == []


@pytest.mark.parametrize(
    ("environment", "cpuset", "level", "todo"),
    [
        ({"SLURM_JOB_ID": "7"}, "0-15", "warning", "salloc --cpus-per-task=CORES"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8"},
            *("0-15", "warning", "srun --cpus-per-task=8 nanogpt doctor"),
        ),
        ({}, "3", "ok", ""),
        ({}, "2-3,7", "warning", "taskset -pc 2-3,7 $$"),
    ],
)
def test_one_core_is_undone_by_who_bound_it(
    environment: dict[str, str],
    cpuset: str,
    level: str,
    todo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    machine = made(
        tmp_path,
        proc__self__cgroup="0::/a/b",
        **{"sys__fs__cgroup__a__cpuset.cpus.effective": cpuset},
    )
    first = next(cores.check_cores(replace(machine, environment=environment)))
    assert (first.name, first.level, first.todo) == ("cores", level, todo)


def test_a_gpu_beside_a_build_for_the_cpu(tmp_path: Path) -> None:
    import torch

    if torch.version.cuda or torch.cuda.is_available():
        pytest.skip("needs a build for the CPU")
    machine = made(tmp_path, dev__nvidia0="", dev__nvidia1="", dev__nvidiactl="")
    [(name, level, text, todo)] = bad(gpus.check_torch, machine)
    assert (name, level) == ("torch", "error")
    assert "built for the CPU, and this machine has 2 GPUs" in text
    assert todo.startswith("pip install --force-reinstall torch")


def test_a_gpu_without_its_driver(tmp_path: Path) -> None:
    place = "sys__bus__pci__devices__0000:01:00.0__"
    machine = made(tmp_path, **{f"{place}vendor": "0x10de", f"{place}class": "0x030200"})
    assert [(name, level) for name, level, *_ in bad(gpus.check_torch, machine)] == [
        ("driver", "warning")
    ]


@pytest.mark.parametrize(
    ("value", "level"),
    [
        *(("", "warning"), ("-1", "warning"), ("0,5", "error"), ("1,0", None), ("01", None)),
        *(("9" * 5000, "error"), ("0,2", "error"), ("٥", None)),
    ],
)
def test_which_gpus_are_seen(tmp_path: Path, value: str, level: str | None) -> None:
    machine = made(tmp_path, dev__nvidia0="", dev__nvidia1="")
    machine = replace(machine, environment={"CUDA_VISIBLE_DEVICES": value})
    found = [each for each in bad(variables.check_variables, machine) if each[0] == "visible GPUs"]
    assert [(each[1], each[3]) for each in found] == (
        [(level, "unset CUDA_VISIBLE_DEVICES")] if level else []
    )


def test_a_job_with_more_gpus_and_torchruns_than_it_should_have(tmp_path: Path) -> None:
    environment = {
        **RANKS,
        **{"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "8"},
        **{"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_ID": "0"},
        **{"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1"},
    }
    found = bad(scheduler.check_scheduler, Machine(environment, root=tmp_path))
    assert [level for _, level, *_ in found] == ["error", "error"]
    assert "torchrun starts 8 times on each node" in found[0][2]
    assert "8 GPUs on this node, this process sees 1" in found[1][2]


def test_a_script_that_starts_torchrun_once_is_no_error(tmp_path: Path) -> None:
    environment = {**RANKS, "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8"}
    assert bad(scheduler.check_scheduler, Machine(environment, root=tmp_path)) == []


def test_what_a_pod_says_to_torchrun_is_left_where_it_is(tmp_path: Path) -> None:
    environment = {"PET_NNODES": "2", "PET_NODE_RANK": "0"}
    assert variables._of_ranks(Machine(environment, root=tmp_path)).level == "warning"
    pod = Machine({**environment, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, root=tmp_path)
    check = variables._of_ranks(pod)
    assert (check.level, check.todo) == ("ok", "")
    assert check.text == "PET_NNODES, PET_NODE_RANK: the pod's, for torchrun"


@pytest.mark.parametrize(
    ("environment", "level", "todo"),
    [
        ({}, "ok", ""),
        (
            {"PET_NNODES": "2"},
            *("warning", "ss -ltnp 'sport = :29500'  # or --rdzv-endpoint HOST:29501"),
        ),
    ],
)
def test_a_port_that_a_living_torchrun_has(
    environment: dict[str, str], level: str, todo: str
) -> None:
    machine = Machine(environment, port_holder=lambda port: "pid 4711 (torchrun)")
    [check] = network._check_port(machine)
    assert (check.level, check.todo) == (level, todo)
    assert check.text.startswith("port 29500 is taken by pid 4711 (torchrun)")


def proxies(**environment: str) -> list[Check]:
    return list(network._check_proxies(Machine({**environment})))


def test_a_proxy_without_a_scheme_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(place)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY")
    [check] = proxies(NO_PROXY="*", **dict.fromkeys(names, "proxy.corp:3128"))
    assert check.level == "ok"
    assert asked == [("proxy.corp", 3128)]  # once
    [check] = proxies(NO_PROXY="*", ALL_PROXY="socks5://proxy.corp")
    assert asked[1:] == [("proxy.corp", 1080)]
    [check] = proxies(NO_PROXY="*", ALL_PROXY="http://:3128")
    assert (check.level, check.todo) == ("error", "unset ALL_PROXY")


def test_proxies_that_do_not_answer_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        never.wait(20)
        raise OSError

    monkeypatch.setattr(network, "PROXY_S", 0.05)
    monkeypatch.setattr(socket, "create_connection", connect)
    found = proxies(NO_PROXY="*", HTTP_PROXY="a:1", HTTPS_PROXY="b:1", ALL_PROXY="c:1")
    never.set()
    assert [check.text.split(" (")[1][:9] for check in found] == ["timed out"] * 3


def test_what_is_excepted_from_a_proxy() -> None:
    assert network._is_excepted("127.0.0.1", "10.0.0.0/8, 127.0.0.0/8")
    assert not network._is_excepted("127.0.0.1", "10.0.0.0/8,a/b")
    assert not network._is_excepted("localhost", "127.0.0.0/8")
    checks = proxies(NO_PROXY="a b;c", HTTP_PROXY="http://:1")
    value = "'a b;c,localhost,127.0.0.1'"
    assert checks[0].todo == f"export NO_PROXY={value} no_proxy={value}"


@pytest.mark.parametrize("name", ["AS", "DATA", "FSIZE", "CPU"])
def test_a_limit_that_the_shell_cannot_take_away(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = getattr(resource, f"RLIMIT_{name}")
    hard = 9000

    def limit(asked: int) -> tuple[int, int]:
        return (900, hard) if asked == which else (limits.NONE, limits.NONE)

    monkeypatch.setattr("resource.getrlimit", limit)
    [check] = limits._of_memory()
    assert check.todo.startswith(f"sudo prlimit --{name.lower()}=unlimited --pid $$")
    hard = limits.NONE
    [check] = limits._of_memory()
    assert check.todo.startswith("ulimit -")


def test_a_name_that_other_machines_cannot_reach(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "_resolve", lambda host: ["127.0.1.1"])
    machine = made(tmp_path, sys__class__net__lo__operstate="unknown")
    for _, name in socket.if_nameindex():
        if name != "lo":
            made(tmp_path, **{f"sys__class__net__{name}__operstate": "up"})
    alone = [each for each in bad(network.check_network, machine) if each[0] == "host name"]
    assert alone == []
    two = replace(machine, environment={"PET_NNODES": "2"})
    [found] = [each for each in bad(network.check_network, two) if each[0] == "host name"]
    assert found[3].startswith("export GLOO_SOCKET_IFNAME=")


@pytest.mark.parametrize(
    ("said", "exact", "chosen"),
    [
        ("eth0", True, ["eth0"]),
        ("eth", True, []),
        ("eth", False, ["eth0", "eth1"]),
        ("=eth", False, []),
        ("=eth1,lo", False, ["lo", "eth1"]),
        ("^lo,docker", False, ["eth0", "eth1"]),
        ("^=eth0", False, ["lo", "eth1", "docker0"]),
    ],
)
def test_interfaces_are_named_as_gloo_and_nccl_read_them(
    said: str,
    exact: bool,
    chosen: list[str],
) -> None:
    names = ["lo", "eth0", "eth1", "docker0"]
    assert network._chosen(said, names, exact) == chosen


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "RESOLVE_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.5) or [])
    [found] = [each for each in bad(network.check_network, Machine({})) if each[0] == "host name"]
    assert "looked up for more than" in found[2]


def test_infiniband_and_little_memory_to_lock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = made(tmp_path, sys__class__infiniband__mlx5_0="")
    monkeypatch.setattr("resource.getrlimit", lambda which: (65536, limits.NONE))
    found = [each for each in bad(limits.check_limits, machine) if each[0] == "locked memory"]
    assert [todo for *_, todo in found] == ["ulimit -l unlimited"]


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    behind = Machine({}, folder=tmp_path, now=lambda: 1e9)
    [(name, level, _, todo)] = bad(clock.check_clock, behind)
    assert (name, level) == ("clock", "error")
    assert todo.startswith("sudo chronyc makestep")
    ahead = Machine({}, folder=tmp_path, now=lambda: time.time() + 60)
    [(name, level, text, _)] = bad(clock.check_clock, ahead)
    assert level == "warning"
    assert "-60 s off" in text
    assert bad(clock.check_clock, Machine({}, folder=tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_may_not_be_asked_is_not_called_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def adjtimex(self, timex: object) -> int:
            return -1

    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: Refusing())
    [check] = clock.check_clock(Machine({}, folder=tmp_path))
    assert check.text.endswith(" UTC")


def test_little_memory_of_a_container(tmp_path: Path) -> None:
    machine = made(
        tmp_path,
        proc__self__cgroup="0::/",
        **{"sys__fs__cgroup__memory.max": str(10**9)},
    )
    [(name, level, text, _)] = bad(gpus.check_memory, machine)
    assert (name, level) == ("memory", "warning")
    assert text.startswith("1.0 GB, 1.0 GB of them free; a cgroup limits it")


def test_a_rank_is_torchruns_or_a_step_of_slurms() -> None:
    assert is_rank(RANKS)
    by_hand = {name: value for name, value in RANKS.items() if name != "TORCHELASTIC_RUN_ID"}
    assert not is_rank(by_hand)
    assert is_rank({**by_hand, "SLURM_PROCID": "0"})
    assert not is_rank({**RANKS, "RANK": "first"})


def test_a_look_that_fails_hides_no_other() -> None:
    def check_nothing(machine: Machine) -> "list[Check]":  # type: ignore[misc]
        yield Check("a", "ok", "fine")
        raise ZeroDivisionError("of a machine that nobody thought of")

    first, second = look(check_nothing, Machine({}))  # type: ignore[arg-type]
    assert first.name == "a"
    assert (second.name, second.level) == ("nothing", "warning")
    assert "ZeroDivisionError" in second.text


def test_errors_stand_last() -> None:
    checks = [Check("a", "error", ""), Check("b", "ok", ""), Check("c", "warning", "")]
    assert [check.name for check in in_order(checks)] == ["b", "c", "a"]


def found(rank: int, host: str, **given: object) -> ranks.Found:
    facts = {"torch": "2.13.0", "device": "H100", "NCCL_ALGO": "Ring"}
    usual = {"checks": [Check("disk", "ok", "fine")], "facts": facts, "tflops": 50.0, "time": 100.0}
    return ranks.Found(rank, host, **{**usual, **given})  # type: ignore[arg-type]


def test_ranks_that_are_alike_give_one_report() -> None:
    slow = Check("disk", "warning", "slow", "cd /")
    both = [found(rank, "a", checks=[slow]) for rank in range(2)]
    checks = ranks.merge(both, 1e9)
    assert [(check.name, check.text) for check in checks] == [
        ("ranks", "2 ranks on 1 machine, all-reduce of 16 MiB at 1.00 GB/s"),
        ("disk", "slow"),
    ]


def test_the_rank_that_differs_is_named() -> None:
    odd = found(
        3,
        "b",
        checks=[Check("disk", "error", "full", "df", Exit.IO_ERROR)],
        facts={"torch": "2.9.0", "device": "H100"},
        tflops=20.0,
        time=103.0,
    )
    checks = ranks.merge([*(found(rank, "a") for rank in range(3)), odd], 1e8)
    bad_ones = [check for check in checks if check.level != "ok"]
    assert [(check.level, check.name, check.text, check.todo) for check in bad_ones] == [
        (
            "warning",
            "ranks",
            "4 ranks on 2 machines, all-reduce of 16 MiB at 0.10 GB/s",
            "ip -s link",
        ),
        (
            "warning",
            "ranks differ",
            "rank 3 on b has NCCL_ALGO unset, most have Ring",
            "export NCCL_ALGO=Ring  # on b",
        ),
        (
            "warning",
            "clock",
            "the clock of rank 3 on b is +3.0 s off that of rank 0",
            "ssh b sudo chronyc makestep",
        ),
        (
            "warning",
            "slow rank",
            "the device of rank 3 on b multiplies at 40% of the median",
            "nvidia-smi -q -d PERFORMANCE,CLOCK",
        ),
        ("error", "disk", "rank 3 on b: full", "df"),
        (
            "error",
            "ranks differ",
            "rank 3 on b has torch 2.9.0, most have 2.13.0",
            "ssh b nanogpt doctor",
        ),
    ]


def test_a_secret_of_a_rank_is_no_difference_and_what_is_typed_is_quoted() -> None:
    variables = {"NCCL_PWD": "planted-pwd", "NCCL_PROXY": "http://bob:planted@host"}
    facts = ranks._facts(Machine({**variables, "NCCL_ALGO": "Ring; Tree"}))
    assert "planted" not in str(facts)
    odd = found(1, "b", facts={"torch": "2.13.0", "device": "H100"})
    others = [found(rank, "a", facts={**odd.facts, "NCCL_ALGO": "Ring; Tree"}) for rank in (0, 2)]
    [check] = [each for each in ranks.merge([*others, odd], 1e9) if each.name == "ranks differ"]
    assert check.todo == "export NCCL_ALGO='Ring; Tree'  # on b"


def test_a_rank_whose_device_could_not_be_measured_is_not_a_slow_one() -> None:
    measured = [found(0, "a"), found(1, "a", tflops=0.0)]
    assert [check.name for check in ranks.merge(measured, 1e9)] == ["ranks", "disk"]


def test_small_shared_memory_matters_where_there_are_several_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = SimpleNamespace(f_frsize=4096, f_blocks=16384, f_bavail=16384)
    monkeypatch.setattr("os.statvfs", lambda path: sizes)
    (tmp_path / "dev/shm").mkdir(parents=True)
    for number, level in enumerate(["ok", "ok", "warning"]):
        check = disk._check_shared_memory(Machine({}, root=tmp_path))
        assert check.level == level
        (tmp_path / f"dev/nvidia{number}").touch()
    assert "NCCL needs more" in check.text
    assert check.todo == "sudo mount -o remount,size=16G /dev/shm  # docker run --shm-size=16g"


def test_a_system_without_shared_memory_in_a_folder_nor_noexec(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("os.ST_NOEXEC")
    machine = Machine({"TMPDIR": "/tmp"}, folder=tmp_path, root=tmp_path)
    assert {each.name for each in disk.check_disk(machine)} == {
        *("disk", "free space", "temporary files")
    }
    [interfaces] = network._check_interfaces(machine, ["lo0", "en0"])
    assert (interfaces.level, interfaces.text) == ("ok", "lo0, en0")


def test_a_compiler_is_missed_beside_a_gpu(tmp_path: Path) -> None:
    machine = Machine({"PATH": str(tmp_path)}, root=tmp_path)
    assert installation._check_compiler(machine).level == "ok"
    assert installation._check_compiler(
        replace(machine, environment={"PATH": str(tmp_path), "CXX": "none"})
    ) == Check(
        "compiler",
        "warning",
        "none is not there, so that torch.compile fails: training on a GPU compiles by default",
        "unset CXX",
    )
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert installation._check_compiler(machine).level == "warning"


def of_gpu(monkeypatch: pytest.MonkeyPatch, free: float, speed: object) -> list[Check]:
    """What is found of a GPU of 80 GB, of which `free` GB are free."""
    import torch

    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * 1e9), int(80e9)))
    monkeypatch.setattr(gpus, "_speeds", speed)
    return list(gpus._check_gpu(Machine({}), torch.device("cuda", 0)))


def test_a_gpu_that_others_use_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def out_of_memory(device: torch.device) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    memory, device = of_gpu(monkeypatch, 2.0, out_of_memory)
    assert (memory.name, memory.level) == ("GPU memory", "warning")
    assert memory.text == "cuda:0: 78.0 of 80.0 GB are in use by others"
    assert (device.level, device.text.partition("; ")[2]) == ("ok", "not measured beside others")
    [device] = of_gpu(monkeypatch, 71.5, out_of_memory)  # 8 GB, and our own context
    assert device.level == "warning"
    assert "its memory ran out while it was measured" in device.text
    [device] = of_gpu(monkeypatch, 71.5, lambda device: {"fp32": 50.0, "bf16": 700.0})
    assert device.level == "ok"


def test_what_a_rank_has_found_goes_over_the_network_and_back() -> None:
    from dataclasses import asdict

    one = found(1, "a", checks=[Check("disk", "error", "full", "df", Exit.IO_ERROR)])
    assert ranks._parsed(json.dumps(asdict(one))) == one
