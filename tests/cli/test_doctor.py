"""`nanogpt doctor` on machines with something wrong: each fault is named, and what it tells to type
mends it.
"""

import contextlib
import json
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.doctor import doctor
from nanogpt_dist.doctor.check import Check
from tests.conftest import CLONE, Run, command

DOCTOR = shlex.join([sys.executable, str(CLONE / "nanogpt"), "doctor", "--json"])


def in_shell(
    script: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What `nanogpt doctor --json` at the end of a script says."""
    usual = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TMPDIR")
    }
    done = subprocess.run(
        [*wrapper, "bash", "-c", f"{script}\n{DOCTOR}"],
        cwd=folder,
        env={**usual, "HF_HOME": str(folder / "hub"), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == report["code"]
    return report


PIP = f"{shlex.quote(sys.executable)} -m pip"


def found(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is not well: name, text, what to type."""
    return [
        (each["name"], each["text"], each["todo"])
        for each in report["checks"]
        if each["level"] != "ok"
    ]


def expect(report: dict[str, Any], faults: list[tuple[str, str, str]]) -> None:
    """Each of `faults`, (name, part of the text, what to type), is in the report."""
    bad = found(report)
    for name, part, todo in faults:
        assert any((name, todo) == (each, typed) and part in text for each, text, typed in bad), (
            f"{name}: {part}: {todo}, of {bad}"
        )


def expect_mended(report: dict[str, Any], faults: list[tuple[str, str, str]]) -> None:
    """Nothing of the names of `faults` is left to mend."""
    names = {name for name, _, _ in faults}
    assert not [each for each in found(report) if each[0] in names]


@pytest.fixture
def odd_path(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH: a second nanogpt, a package that hides one, an old numpy."""
    folder = tmp_path / "odd"
    for package in ("nanogpt_dist", "datasets"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "numpy-0.9.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: numpy\nVersion: 0.9\n"
    (folder / "numpy-0.9.dist-info/METADATA").write_text(metadata)
    return folder


VARIABLES = {
    "GLOO_SOCKET_IFNAME": "nosuch",
    "NCCL_SOCKET_IFNAME": "=ib7",
    "RANK": "1",
    "WORLD_SIZE": "4",
    "OMP_NUM_THREADS": "640",
    "HTTPS_PROXY": "http://bob:S3cr3tpw@127.0.0.1:9",
    "REQUESTS_CA_BUNDLE": "/nowhere/ca.pem",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segment:True",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "CUDA_LAUNCH_BLOCKING": "1",
    "TMPDIR": "/nowhere/tmp",
    "HF_TOKEN": "hf_abcdefgh ijk",
    "CXX": "/nowhere/g++",
    "SLURM_JOB_ID": "12",
    "SLURM_NNODES": "2",
    "SLURM_CPUS_PER_TASK": "4096",
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def test_twenty_faults_of_an_environment_are_named_and_mended(
    tmp_path: Path,
    odd_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    environment = {
        **VARIABLES,
        "PYTHONPATH": str(odd_path),
        "HF_HOME": str(tmp_path / "file"),
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "vocabularies"),
    }
    home = str(tmp_path)
    environment["HOME"] = home
    cores = len(os.sched_getaffinity(0))
    interface = _outward()
    faults = [
        ("interfaces", "GLOO_SOCKET_IFNAME=nosuch", f"export GLOO_SOCKET_IFNAME={interface}"),
        ("interfaces", "NCCL_SOCKET_IFNAME==ib7", f"export NCCL_SOCKET_IFNAME={interface}"),
        ("rank variables", "wait for 4 ranks", "unset RANK WORLD_SIZE"),
        ("threads", "OMP_NUM_THREADS=640", f"export OMP_NUM_THREADS={cores}"),
        ("proxies", "127.0.0.1:9 does not answer", "unset HTTPS_PROXY"),
        (
            "proxies",
            "does not except localhost",
            "export NO_PROXY=localhost,127.0.0.1 no_proxy=localhost,127.0.0.1",
        ),
        ("certificates", "/nowhere/ca.pem", "unset REQUESTS_CA_BUNDLE"),
        ("allocator", "'expandable_segment'", "unset PYTORCH_CUDA_ALLOC_CONF"),
        ("debug variables", "each collective", "unset TORCH_DISTRIBUTED_DEBUG"),
        ("debug variables", "each kernel", "unset CUDA_LAUNCH_BLOCKING"),
        ("temporary files", "/nowhere/tmp", "unset TMPDIR"),
        ("hub", "character 12", "unset HF_TOKEN"),
        ("hub cache", "cannot be written", f"export HF_HOME={home}/hf-cache"),
        ("tiktoken cache", "is no folder", f"mkdir -p {tmp_path}/vocabularies"),
        ("compiler", "/nowhere/g++", "unset CXX"),
        ("Slurm", "2 nodes", "srun --ntasks-per-node=1 nanogpt doctor"),
        ("Slurm", "4096 cores", "export SRUN_CPUS_PER_TASK=4096"),
        (
            "text encoding",
            "ascii",
            "unset PYTHONUTF8 PYTHONCOERCECLOCALE; export LC_ALL=C.UTF-8",
        ),
        ("imports", "a second installation", "unset PYTHONPATH"),
        ("packages", "numpy 0.9", f"{PIP} install 'numpy>=1.26'"),
    ]
    report = in_shell("", tmp_path, environment)
    expect(report, faults)
    shown = [each["text"] for each in report["checks"] if each["name"] == "imports"]
    assert any("datasets is imported from" in text for text in shown)
    assert "S3cr3tpw" not in json.dumps(report)
    assert "hf_abcdefgh" not in json.dumps(report)
    typed = [todo for _, _, todo in faults if not todo.startswith(("srun", PIP))]
    expect_mended(in_shell("\n".join([*typed, *END_OF_JOB]), tmp_path, environment), faults)


# a job of Slurm's is left, not mended
END_OF_JOB = ["unset SLURM_JOB_ID SLURM_NNODES SLURM_CPUS_PER_TASK"]


def _outward() -> str:
    """The first interface that leads to others, as the report proposes it."""
    names = [name for _, name in socket.if_nameindex()]
    for name in names:
        state = Path(f"/sys/class/net/{name}/operstate").read_text().strip()
        if state == "up" and not name.startswith(("lo", "docker", "veth", "br-", "virbr")):
            return name
    return names[-1]


MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
LIMITS = [
    ("ulimit -S -n 64", "open files", "64 open files", f"ulimit -n {min(65536, MOST_FILES)}"),
    ("ulimit -S -u 500", "processes", "500 processes", "ulimit -u 4096"),
    ("ulimit -S -v 90000000", "address space", "92.2 GB", "ulimit -v unlimited"),
    ("ulimit -S -f 2000000", "file size", "2.048 GB", "ulimit -f unlimited"),
    (
        "ulimit -S -t 3000",
        "processor time",
        "3,000 s",
        "ulimit -t unlimited  # or run it in a job",
    ),
    ("ulimit -S -s 900", "stack", "900 KiB", "ulimit -s 8192"),
    ("umask 777", "umask", "umask 777", "umask 022"),
]


def test_seven_limits_of_a_shell_are_named_and_mended(tmp_path: Path) -> None:
    wrong = [line for line, *_ in LIMITS]
    report = in_shell("\n".join(wrong), tmp_path, {"HF_HUB_OFFLINE": "1"})
    faults = [(name, part, todo) for _, name, part, todo in LIMITS]
    expect(report, faults)
    expect(report, [("hub cache", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")])
    typed = [todo for _, _, todo in faults]
    expect_mended(in_shell("\n".join([*wrong, *typed]), tmp_path), faults)


def needs_root(*flags: str) -> tuple[str, ...]:
    line = ("unshare", *flags)
    if (
        not shutil.which("unshare")
        or subprocess.run([*line, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs root, to mount file systems of its own")
    return line


def test_a_read_only_disk_noexec_and_a_host_without_address(
    tmp_path: Path,
) -> None:
    wrapper = needs_root("--mount", "--uts")
    tmp = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))  # a short name, as it is to be
    script = f"""
        hostname no-such-host.invalid
        mkdir -p ro
        mount -t tmpfs -o noexec none {tmp}
        mount -t tmpfs -o ro none ro
        cd ro"""
    report = in_shell(script, tmp_path, {"TMPDIR": str(tmp)}, wrapper)
    home = shlex.quote(str(Path.home()))
    faults = [
        ("disk", "Read-only", f"cd {home}  # or --out-dir on another disk"),
        ("temporary files", "noexec", "unset TMPDIR"),
        (
            "host name",
            "does not resolve",
            "echo '127.0.0.1 no-such-host.invalid' | sudo tee -a /etc/hosts",
        ),
    ]
    expect(report, faults)
    assert report["code"] == 73
    script += f"""
        sudo() {{ "$@"; }}
        cp /etc/hosts {tmp_path}/hosts && mount --bind {tmp_path}/hosts /etc/hosts
        """ + "\n".join(todo for _, _, todo in faults)
    expect_mended(in_shell(script, tmp_path, {"TMPDIR": str(tmp)}, wrapper), faults)
    tmp.rmdir()


@pytest.mark.thorough
def test_a_full_disk_and_one_without_inodes(tmp_path: Path) -> None:
    wrapper = needs_root("--mount")
    mount = "mkdir full; mount -t tmpfs -o size=1m,nr_inodes={} none full; cd full\n"
    full = in_shell(
        mount.format(100) + "head -c 2M /dev/zero > a 2> /dev/null", tmp_path, {}, wrapper
    )
    folder = tmp_path / "full"
    todo = f"df -h {folder}; nanogpt checkpoint prune RUN --dry-run"
    expect(full, [("disk", "No space left", todo)])
    assert full["code"] == 74
    none = in_shell(
        "mkdir -p full; " + mount.partition(";")[2].format(2) + "touch a", tmp_path, {}, wrapper
    )
    expect(none, [("disk", "No space left", todo)])


def test_one_core_and_a_port_that_is_taken(tmp_path: Path) -> None:
    there = os.cpu_count() or 1
    if there < 2:
        pytest.skip("needs two cores")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        report = in_shell("taskset -pc 0 $$ > /dev/null", tmp_path, {"MASTER_PORT": str(port)})
    expect(
        report,
        [
            ("cores", "bound to one", f"taskset -pc 0-{there - 1} $$"),
            (
                "port",
                f"{port} is taken by pid {os.getpid()}",
                f"ss -ltnp 'sport = :{port}'  # or --rdzv-endpoint HOST:{port + 1}",
            ),
            ("rank variables", "MASTER_PORT is set", "unset MASTER_PORT"),
        ],
    )
    assert report["code"] == 1


def test_two_ranks_give_one_report_and_measure_their_all_reduce(nanogpt: Run) -> None:
    done = nanogpt("doctor", "--json", ranks=2, code=None)
    report = json.loads(done.stdout)
    [ranks] = [each for each in report["checks"] if each["name"] == "ranks"]
    assert ranks["text"].startswith("2 ranks on 1 machine, all-reduce of 16 MiB at ")
    assert done.returncode == (0 if report["code"] == 0 else 1)


def test_ranks_that_do_not_meet_are_told_of_and_launch_returns_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [*command("launch", "--nproc-per-node", 2, "doctor"), "--json"],
        cwd=tmp_path,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "nosuch"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    report = json.loads(done.stdout)
    assert [each["name"] for each in report["checks"] if each["level"] == "error"] == [
        *("interfaces", "ranks")
    ]
    assert done.returncode == report["code"] == 78
    assert "Traceback" not in done.stderr


def test_people_get_a_line_for_each_and_what_to_type_below(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1", "HF_HUB_OFFLINE": "0"}
    line = command("doctor")
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    at = lines.index("        type: unset CUDA_LAUNCH_BLOCKING")
    assert lines[at - 1].startswith("WARNING debug variables   CUDA_LAUNCH_BLOCKING=1 makes")
    assert any(line.startswith("ok      device            cpu: ") for line in lines)
    assert lines[-1].split(" · ")[0].endswith(" 0 errors")
    assert done.returncode == 1


def test_a_run_is_told_of_also_where_a_rank_is_left_over(trained: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "4"}
    line = command("doctor", trained, "--json")
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["run"] == str(trained)
    assert "device" not in {each["name"] for each in report["checks"]}
    assert done.returncode == report["code"]


def test_no_run_is_an_error_of_one_line(nanogpt: Run) -> None:
    done = nanogpt("doctor", "out/none", code=66)
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_is_looked_at_once_the_ranks_have_met(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 0 may take longer for a large one than the others wait for it to come."""
    order = []

    @contextlib.contextmanager
    def examine(machine: object) -> Iterator[tuple[list[Check], bool]]:
        order.append("met")
        yield [], True
        order.append("parted")

    monkeypatch.setattr("nanogpt_dist.doctor.ranks.examine", examine)
    monkeypatch.setattr(
        "nanogpt_dist.doctor.run_checks.check_run", lambda run: order.append("run") or []
    )
    with pytest.raises(typer.Exit):
        doctor(trained, bundle=True, out=tmp_path / "x.tar.gz")
    assert order == ["met", "run", "parted"]
