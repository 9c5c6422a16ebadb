"""`nanogpt launch`: the command line it makes, the verdict it returns, and that nothing survives
it.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import job_options, network, processes, supervisor, torchrun, verdict
from launch.verdict import Verdict
from nanogpt_dist.errors import MAX_LINE, NanogptError, StoppedError, UsageError

ROOT = Path(__file__).resolve().parents[2]
RANKS = ROOT / "tests" / "ranks"
REAL_TORCHRUN = [
    sys.executable,
    "-m",
    "nanogpt_dist.distributed.torchrun_agent",
    "--standalone",
    "--nproc-per-node",
    "2",
]
FAKE_TORCHRUN = [sys.executable, str(RANKS / "launch_agent.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="ranks are found through /proc")


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether a process runs: one that nobody has reaped yet is a zombie, state Z.

    Its environment would not tell: that of a process in the midst of exec is empty too.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (
            b"Z",
            b"X",
        )
    except OSError:
        return False


def cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RANKS / "launch_app.py"), *arguments]
    return subprocess.run(
        command, env={**ENVIRONMENT, **variables}, capture_output=True, text=True, timeout=60
    )


class Launcher:
    """A launcher in a process of its own, over ranks that end in a given way."""

    def __init__(
        self,
        folder: Path,
        agent: list[str],
        way: list[str],
        timeout_s: float = 60,
    ) -> None:
        self.folder = folder
        worker = [str(RANKS / "launch_worker.py"), str(folder), *way]
        app = [sys.executable, str(RANKS / "launch_app.py"), "supervise", str(timeout_s)]
        environment = {**ENVIRONMENT, "TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [*app, *agent, *worker], env=environment, stderr=subprocess.PIPE, text=True
        )

    def wait_for_ranks(self) -> None:
        wait_for(lambda: len(list(self.folder.glob("ready-*"))) == 2)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it wrote to standard error."""
        stderr = self.process.communicate(timeout=60)[1]
        return self.process.returncode, stderr

    def living(self) -> set[int]:
        """Ids of the rank processes that are left."""
        pids = {int(file.name.removeprefix("pid-")) for file in self.folder.glob("pid-*")}
        return {pid for pid in pids if lives(pid)}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    started: list[Launcher] = []

    def start(agent: list[str], *way: str, timeout_s: float = 60) -> Launcher:
        started.append(Launcher(tmp_path, agent, list(way), timeout_s))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        processes.send(signal.SIGKILL, launcher.living())


def fake(restarts: int = 0) -> list[str]:
    return [*FAKE_TORCHRUN, str(restarts), sys.executable]


# ---- the command line


def test_one_node_needs_no_address() -> None:
    command = torchrun.command(2, torchrun.Nodes(), 3, ["train", "gpt2-124m"])
    assert command[:3] == [sys.executable, "-m", "nanogpt_dist.distributed.torchrun_agent"]
    assert "--standalone" in command
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[command.index("--max-restarts") + 1] == "3"
    assert command[-4:] == ["-m", "nanogpt_dist", "train", "gpt2-124m"]


@pytest.mark.parametrize(("node_rank", "backend"), [(1, "static"), (None, "c10d")])
def test_several_nodes_meet(node_rank: int | None, backend: str) -> None:
    nodes = torchrun.Nodes(4, 4, node_rank, "10.0.0.1:29500", "10.0.0.2", hosts_meeting=False)
    command = torchrun.command(8, nodes, 0, ["train"])
    assert command[command.index("--rdzv-backend") + 1] == backend
    assert command[command.index("--rdzv-endpoint") + 1] == "10.0.0.1:29500"
    assert ("--node-rank" in command) == (node_rank is not None)
    assert command[command.index("--local-addr") + 1] == "10.0.0.2"
    assert "--standalone" not in command


@pytest.mark.parametrize(
    "settings",
    [
        *[
            (0, "1", None, None),
            (2, "0", None, None),
            (2, "2", None, None),
            (2, "2", 2, "127.0.0.1:1"),
        ],
        *[
            (2, "2", 0, "a"),
            (2, "1", 0, "127.0.0.1:1"),
            (2, "4:1", None, "127.0.0.1:1"),
            (2, "x", None, None),
        ],
        (2, "1:4", 0, "127.0.0.1:1"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    settings: tuple[int, str, int | None, str | None],
) -> None:
    with pytest.raises(UsageError) as caught:
        torchrun.command(settings[0], torchrun.nodes_of(*settings[1:]), 0, ["train"])
    assert len(str(caught.value)) <= MAX_LINE


def test_environment_shares_the_cores_and_respects_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torchrun, "cores", lambda: 8)
    assert torchrun.environment(2, 60, {})["OMP_NUM_THREADS"] == "4"
    assert torchrun.environment(16, 60, {})["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in torchrun.environment(2, 60, {"OMP_NUM_THREADS": "3"})
    assert (
        torchrun.environment(2, 60, {"PYTHONPATH": "/mine"})["PYTHONPATH"]
        == f"{ROOT}{os.pathsep}/mine"
    )
    assert "PYTHONPATH" not in torchrun.environment(2, 60, {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("visible", "cores", "expected"),
    [
        ("0,1,2", 8, 3),
        ("0,-1,2", 8, 1),
        ("", 8, 2),
        ("-1", 1, 1),
        ("0,1,2,3", 8, 3),
        ("5", 8, 2),
        ("GPU-8a,GPU-9b", 8, 2),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, visible: str, cores: int, expected: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torchrun, "_gpus_of_machine", lambda: 3)
    monkeypatch.setattr(torchrun, "cores", lambda: cores)
    assert torchrun.ranks("auto") == expected


def test_gpus_that_are_not_there_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has GPUs")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")  # left over on a node without any
    assert torchrun.gpus() == 0


def test_nothing_of_another_torchrun_is_inherited() -> None:
    left = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "a",
        "HOME": "/h",
    }
    assert torchrun.inherited(left) == {"HOME": "/h"}


def test_an_ipv6_address_stands_in_brackets_and_has_an_interface() -> None:
    nodes = torchrun.Nodes(2, 2, 0, "fd00::1:29500")
    assert "[fd00::1]:29500" in torchrun.command(1, nodes, 0, ["train"])
    if sys.platform == "linux" and Path("/proc/net/if_inet6").exists():
        assert network.interface_of("::1") == "lo"


def test_nodes_come_by_either_kind_of_address() -> None:
    with network.listen(0, 8) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            socket.create_connection((host, port), timeout=5).close()


@linux
def test_two_launchers_on_one_machine_meet(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    line = [
        sys.executable,
        "-m",
        "nanogpt_dist.distributed.torchrun_agent",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--local-addr",
        "127.0.0.1",
    ]
    line += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        endpoint,
        "--rdzv-id",
        "a",
        "--rdzv-conf",
        "is_host=1",
    ]
    line += ["--no-python", "true"]
    started = [subprocess.Popen(line, env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in started] == [0, 0]


def test_auto_asks_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: a)'\necho '  MIG 1g.10gb'\necho 'GPU 1: H100 (UUID: "
        "b)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert torchrun.ranks("auto") == 2


def test_dry_run_can_be_pasted_and_leaves_the_command_alone() -> None:
    arguments = [
        "train",
        "gpt2-124m",
        "--max-iters",
        "5",
        "--nnodes",
        "7",
        "--dry_run",
        "--note",
        "it's 5 o'clock",
    ]
    done = cli("launch", "--nproc_per_node", "2", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[0] == "env"
    assert words[words.index("--nproc-per-node") + 1] == "2"
    assert words[-len(arguments) :] == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean train?"),
        (["launch", "train"], "cannot launch 'launch'"),
        (["--nproc-per-node", "two", "train"], "--nproc-per-node 2"),
        (["--nproc-per-node", "9" * 5000, "train"], "is neither a number nor auto"),
        (["--nproc-per-node", "٢", "train"], "is neither a number nor auto"),
        (["--nnodes", "9" * 5000, "train"], "give a number, or the fewest and the most"),
        (["--nnodes", "2", "--rdzv-endpoint", "a:" + "9" * 5000, "train"], "is not HOST:PORT"),
        (["--no-such-option", "train"], "No such option"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    done = cli("launch", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("number", ["9" * 5000, "٢", "0", "-1", ""])
def test_a_job_has_a_count_of_ranks(number: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say how many ranks each has"):
        job_options.make(1, number, ["train"], {}, 3, 60, tmp_path)


@pytest.mark.parametrize(
    ("visible", "seen"), [("0,1", 2), ("0,-1,1", 1), ("1," + "9" * 5000, 1), ("GPU-abc,0", 2)]
)
def test_gpus_that_are_visible(visible: str, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "_gpus_of_machine", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert torchrun.gpus() == seen


def test_torch_is_not_imported() -> None:
    code = "import sys, cli.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=60).returncode == 0


# ---- the verdict


@pytest.mark.parametrize("attempt", ["9" * 5000, "٢", "x"])
def test_an_attempt_that_is_none_counts_as_the_first(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "verdict.json"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
    assert verdict.write(Verdict(74, "disk full", 1, agreed=False))
    assert verdict.read(tmp_path / "verdict.json") is not None


def test_the_first_failing_rank_wins_and_agreement_overrules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "verdict.json"
    monkeypatch.setenv(verdict.VARIABLE, str(path))
    first = Verdict(74, "disk full", 1, agreed=False)
    assert verdict.read(path) is None
    assert verdict.write(first)
    assert not verdict.write(Verdict(70, "rank 1 is gone", 0, agreed=False))
    assert verdict.read(path) == first
    agreed = Verdict(75, "", 0, agreed=True)
    assert verdict.write(agreed)
    assert verdict.read(path) == agreed
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert verdict.write(first)
    assert verdict.read(path) == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["verdict.json", "verdict.json.2"]


def test_a_verdict_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(verdict.VARIABLE, raising=False)
    assert not verdict.write(Verdict(70, "", 0, agreed=False))
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "gone" / "verdict.json"))
    assert not verdict.write(Verdict(70, "", 0, agreed=False))
    (tmp_path / "torn").write_text('{"code": 7')
    assert verdict.read(tmp_path / "torn") is None


def test_conclusions() -> None:
    stop = supervisor.Stop(60)
    alone = Verdict(74, "disk full", 3, agreed=False)
    assert supervisor.conclude(1, Verdict(78, "bad", 0, agreed=True), stop) == 78
    assert supervisor.conclude(0, None, stop) == 0
    assert supervisor.conclude(0, alone, stop) == 0  # a restart mended it
    with pytest.raises(NanogptError, match="rank 3: disk full") as caught:
        supervisor.conclude(1, alone, stop)
    assert caught.value.code == 74
    with pytest.raises(NanogptError, match="killed by SIGKILL") as caught:
        supervisor.conclude(-9, None, stop)
    assert caught.value.code == 70
    assert len(str(caught.value)) <= MAX_LINE
    with pytest.raises(StoppedError):
        supervisor.conclude(-15, None, supervisor.Stop(60, first=0.0))


def test_an_agreed_verdict_is_returned_and_torchrun_is_quiet(
    start: Callable[..., Launcher],
) -> None:
    assert start(REAL_TORCHRUN, "agreed", "78").end() == (78, "")


def test_a_lone_failure_wins_over_torchruns_1(start: Callable[..., Launcher]) -> None:
    code, stderr = start(fake(), "alone", "74").end()
    assert (code, stderr) == (74, "rank 1: the disk is full\n")


def test_a_failure_that_a_restart_mended_is_forgotten(start: Callable[..., Launcher]) -> None:
    assert start(fake(restarts=1), "alone", "74").end() == (0, "")


# ---- signals


@linux
def test_sigterm_reaches_the_ranks_which_save(start: Callable[..., Launcher]) -> None:
    launcher = start(REAL_TORCHRUN, "save")
    launcher.wait_for_ranks()
    launcher.process.send_signal(signal.SIGTERM)
    launcher.process.send_signal(signal.SIGTERM)  # schedulers repeat it
    assert launcher.end() == (75, "")
    assert len(list(launcher.folder.glob("saved-*"))) == 2
    assert not launcher.living()


@linux
def test_ranks_that_ignore_sigterm_are_killed_after_the_deadline(
    start: Callable[..., Launcher],
) -> None:
    launcher = start(fake(), "deaf", timeout_s=0.5)
    launcher.wait_for_ranks()
    assert len(launcher.living()) == 4
    launcher.process.send_signal(signal.SIGTERM)
    code, stderr = launcher.end()
    assert code == 70
    assert "did not stop within 0.5 s" in stderr
    assert not launcher.living()


@linux
def test_a_second_ctrl_c_kills_at_once(start: Callable[..., Launcher]) -> None:
    launcher = start(fake(), "deaf")
    launcher.wait_for_ranks()
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(3 * supervisor.SAME_SIGNAL_S)
    launcher.process.send_signal(signal.SIGINT)
    code, stderr = launcher.end()
    assert code == 70
    assert "second Ctrl-C" in stderr
    assert not launcher.living()


@linux
def test_ranks_whose_torchrun_is_killed_save(start: Callable[..., Launcher]) -> None:
    launcher = start(fake(), "save")
    launcher.wait_for_ranks()
    (agent,) = processes.children(launcher.process.pid)
    os.kill(agent, signal.SIGKILL)
    assert launcher.end() == (75, "")
    assert not launcher.living()


@linux
def test_ranks_whose_launcher_is_killed_save(start: Callable[..., Launcher]) -> None:
    launcher = start(REAL_TORCHRUN, "save")
    launcher.wait_for_ranks()
    launcher.process.kill()
    wait_for(lambda: not launcher.living())
    assert len(list(launcher.folder.glob("saved-*"))) == 2


@linux
def test_a_stop_before_there_are_ranks(start: Callable[..., Launcher], tmp_path: Path) -> None:
    launcher = start(
        [sys.executable, "-c", f"open({str(tmp_path / 'up')!r}, 'w'); import time; time.sleep(60)"],
        "save",
    )
    wait_for((tmp_path / "up").exists)
    launcher.process.send_signal(signal.SIGTERM)
    code, stderr = launcher.end()
    assert code == 75
    assert "stopped; the same command" in stderr
