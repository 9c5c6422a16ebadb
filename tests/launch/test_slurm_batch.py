"""The batch file of `nanogpt launch --slurm` in bash: with a Slurm that is played, and once with a
real one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import job_options, processes, slurm
from tests.conftest import TINY
from tests.faults import slurm_preempt
from tests.launch.test_launch import REAL_TORCHRUN, Launcher, linux
from tests.launch.test_slurm import job

# What the batch file calls, played: each notes its arguments; srun runs the command as the task of
# node 1.
PLAYED = {
    "scontrol": """\
        echo "scontrol $*" >> "$PLAY/calls"
        case "$1 $2" in
        "show hostnames") printf 'n7\\nn8\\n' ;;
        "show node") echo "NodeName=$4 Arch=x86_64 NodeAddr=10.0.0.$4 NodeHostName=$4 Version=22.05" ;;
        "show job") echo "JobId=12 JobName=x JobState=${STATE:-RUNNING} Reason=None" ;;
        requeue*) exit "${REQUEUE:-0}" ;;
        esac""",  # noqa: E501
    "scancel": """\
        echo "scancel $*" >> "$PLAY/calls"
        [ -e "$PLAY/task" ] && kill -USR1 "$(cat "$PLAY/task")\"""",
    "srun": """\
        echo "srun" >> "$PLAY/calls"
        while [ "${1#--}" != "$1" ]; do shift; done
        export SLURM_NODEID=1
        sleep "${LATE:-0}"
        exec "$@\"""",
    "python": """\
        printf '%s\\0' "$@" > "$PLAY/argv"
        trap 'exit "${STOPPED:-75}"' USR1
        [ -z "${DEAF:-}" ] || trap - USR1
        echo $$ > "$PLAY/task.new" && mv "$PLAY/task.new" "$PLAY/task"
        [ -z "${WAIT:-}" ] || for i in $(seq 600); do sleep 0.05; done
        exit "${CODE:-0}\"""",
}


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the played commands."""
    folder = tmp_path_factory.mktemp("play")
    for name, body in PLAYED.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


class Played:
    """The batch file of a job in bash."""

    def __init__(self, play: Path, job: job_options.Job, **how: str) -> None:
        self.play = play
        for name in ("calls", "argv", "task"):
            (play / name).unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slurm.sys, "executable", str(play / "python"))
            slurm.write(play / "job.sbatch", slurm.script(job, {}))
        environment = {
            "PATH": f"{play}:{os.environ['PATH']}",
            "PLAY": str(play),
            "SLURM_JOB_ID": "12",
            "SLURM_ARRAY_JOB_ID": "9",
            "SLURM_ARRAY_TASK_ID": "1",
            **how,
        }
        environment["SLURM_JOB_NODELIST"] = "n[7-8]"
        self.process = subprocess.Popen(
            ["bash", play / "job.sbatch"], env=environment, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> int:
        self.stderr = self.process.communicate(timeout=60)[1]
        return self.process.returncode

    def calls(self) -> str:
        return (self.play / "calls").read_text()

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.play / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@settings(max_examples=40)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5)
)
def test_every_node_gets_the_exact_arguments(play: Path, arguments: list[str]) -> None:
    arguments = ["train", *arguments]
    assert Played(play, job(*arguments)).end() == 0
    argv = [os.fsdecode(text) for text in (play / "argv").read_bytes().split(b"\0")[:-1]]
    assert argv == [
        *("-m", "nanogpt_dist", "launch", "--node-rank", "1", "--rdzv-endpoint", "10.0.0.n7:10012"),
        *(
            "--nnodes",
            "2",
            "--nproc-per-node",
            "8",
            "--max-restarts",
            "0",
            "--shutdown-timeout",
            "60",
            *arguments,
        ),
    ]


ARRAY = (["train", "a", "--seed", "1"], ["train", "it's b", "--seed", "2"], ["train", "c"])


@pytest.mark.parametrize("nnodes", [1, 2])
@pytest.mark.parametrize("number", range(3))
def test_task_i_of_an_array_runs_run_i(play: Path, number: int, nnodes: int) -> None:
    of_array = replace(job(*ARRAY[0], nnodes=nnodes), tasks=ARRAY)
    assert Played(play, of_array, SLURM_ARRAY_TASK_ID=str(number)).end() == 0
    argv = [os.fsdecode(text) for text in (play / "argv").read_bytes().split(b"\0")[:-1]]
    assert argv[-len(ARRAY[number]) :] == ARRAY[number]
    assert argv[:3] == ["-m", "nanogpt_dist", "launch"]
    assert argv[-len(ARRAY[number]) - 2 :][:2] == ["--shutdown-timeout", "60"]
    assert ("--rdzv-endpoint" in argv) == (nnodes > 1)


def test_a_task_of_an_array_is_signalled_and_requeued_alone(play: Path) -> None:
    """By its number in the array: that of the job is for one of the tasks the array's own."""
    played = Played(play, replace(job(), tasks=ARRAY), WAIT="1")
    played.wait_for("task")
    played.process.send_signal(signal.SIGUSR1)
    assert played.end() == 0
    calls = played.calls().splitlines()
    assert "scancel --signal=USR1 9_1.0" in calls
    assert "scontrol requeue 9_1" in calls
    played = Played(play, replace(job(), tasks=ARRAY), CODE="75", REQUEUE="1")
    assert played.end() == 75
    assert "type: sbatch --array=1 /" in played.stderr


def test_a_name_that_is_not_utf8(play: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert Played(play, job("train", name, nnodes=1)).end() == 0
    assert (play / "argv").read_bytes().endswith(b"\0caf\xe9\0")


def test_one_node_needs_no_meeting_place(play: Path) -> None:
    assert Played(play, job("train", nnodes=1)).end() == 0
    assert b"--rdzv-endpoint" not in (play / "argv").read_bytes()


@pytest.mark.parametrize(
    ("how", "code", "requeued"),
    [
        ({}, 0, False),
        ({"CODE": "78"}, 78, False),
        ({"CODE": "75"}, 0, True),
        ({"CODE": "75", "STATE": "COMPLETING"}, 75, False),  # scancel: it is to end
        ({"CODE": "75", "REQUEUE": "1"}, 75, True),
        ({"CODE": "138"}, 138, False),
    ],
)
def test_ends(play: Path, how: dict[str, str], code: int, requeued: bool) -> None:
    played = Played(play, job(), **how)
    assert played.end() == code
    assert ("scontrol requeue 12" in played.calls()) == requeued
    assert ("type: sbatch" in played.stderr) == (how.get("REQUEUE") == "1")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    "how", [{}, {"DEAF": "1"}, {"LATE": "0.5"}], ids=["saves", "not yet listening", "no step yet"]
)
def test_a_signal_is_passed_on_to_the_step_and_the_job_requeued(
    play: Path,
    number: signal.Signals,
    how: dict[str, str],
) -> None:
    played = Played(play, job(), WAIT="1", **how)
    played.wait_for("calls" if "LATE" in how else "task")
    if "LATE" in how:
        deadline = time.monotonic() + 60
        while "srun" not in played.calls() and time.monotonic() < deadline:
            time.sleep(0.01)
    played.process.send_signal(number)
    assert played.end() == 0
    assert "scancel --signal=USR1 12.0" in played.calls()
    assert "scontrol requeue 12" in played.calls()


def test_a_run_that_ends_well_while_it_is_asked_to_stop_is_done(play: Path) -> None:
    played = Played(play, job(), WAIT="1", STOPPED="0")
    played.wait_for("task")
    played.process.send_signal(signal.SIGUSR1)
    assert played.end() == 0
    assert "scontrol requeue" not in played.calls()


# ---- the launcher that it signals


@linux
def test_a_signal_to_every_process_of_the_step_stops_it_once(tmp_path: Path) -> None:
    """What a Slurm with proctrack/linuxproc does; with proctrack/cgroup the launcher alone gets
    it.
    """
    launcher = Launcher(tmp_path, REAL_TORCHRUN, ["save"])
    launcher.wait_for_ranks()
    (torchrun,) = processes.children(launcher.process.pid)
    processes.send(signal.SIGUSR1, [*processes.children(torchrun), torchrun, launcher.process.pid])
    assert launcher.end() == (75, "")
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert not launcher.living()


# ---- a real Slurm


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Callable[..., slurm_preempt.Training]]:
    if reason := slurm_preempt.missing():
        pytest.skip(f"a real Slurm {reason}")
    slurm_preempt.prepare(tmp_path)
    with slurm_preempt.cluster("linuxproc") as environment:
        yield lambda *given: slurm_preempt.Training(tmp_path, environment, *given)


@pytest.mark.thorough
def test_a_preempted_training_ends_with_the_same_weights(
    real: Callable[..., slurm_preempt.Training],
) -> None:
    alone = real("alone", 400).finish()
    assert (alone["state"], alone["requeued"]) == ("COMPLETED", 0)
    training = real("preempted", 400)
    training.wait_for_updates()
    slurm_preempt.preempt(training)
    found = training.finish()
    assert (found["state"], found["requeued"], found["weights"]) == (
        "COMPLETED",
        1,
        alone["weights"],
    )
    assert found["saved_at"] == found["resumed_at"] != []


SWEEP = """
preset = "quickstart"
dataset = "data"
vocab_size = 257
{settings}
max_iters = 300
eval_interval = 300
tensorboard = false

[grid]
seed = [1, 2, 3]
"""


@pytest.mark.thorough
def test_of_an_array_one_task_is_stopped_and_requeued_and_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    if reason := slurm_preempt.missing():
        pytest.skip(f"a real Slurm {reason}")
    slurm_preempt.prepare(tmp_path)
    names = (name.removeprefix("--").replace("-", "_") for name in TINY[::2])
    values = (value if value[0].isdigit() else f'"{value}"' for value in TINY[1::2])
    settings = "\n".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))
    (tmp_path / "s.toml").write_text(SWEEP.format(settings=settings))

    with slurm_preempt.cluster("linuxproc") as environment:

        def typed(*words: str) -> str:
            done = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, f"{words}: {done.stderr}"
            return done.stdout

        def shown(task: int) -> dict[str, str]:
            line = typed("scontrol", "show", "job", "--oneliner", f"{number}_{task}")
            return dict(re.findall(r"(\w+)=(\S+)", line))

        line = [sys.executable, "-m", "nanogpt_dist", "sweep", "s.toml", "--slurm"]
        said = typed(*line, "--nproc-per-node", "1", "--partition", "debug")
        number = re.findall(r"job (\d+)", said)[0]
        # the last task, whose own number is the array's
        run = tmp_path / "out/sweeps/s/seed=3"
        wait(lambda: (run / "metrics.jsonl").exists())
        typed("scancel", "--batch", "--signal=USR1", f"{number}_2")
        wait(lambda: shown(2)["Restarts"] == "1")
        typed("scontrol", "update", f"job={number}_2", "StartTime=now+3")
        wait(lambda: {shown(task)["JobState"] for task in range(3)} == {"COMPLETED"})
        assert [shown(task)["Restarts"] for task in range(3)] == ["0", "0", "1"]
        table = typed(*line[:-1], "--table")
        assert table.count(" done") == 3
        log = (tmp_path / f"nanogpt-s-{number}_2.out").read_text()
        assert "stopped and saved at step" in log
        assert "going on from step-" in log
        last = "checkpoints/step-00000300/model.safetensors"
        stopped = (run / last).read_bytes()
        typed("mv", str(run), "before")
        typed(*line[:-1], "--only", "seed=3")
        assert (run / last).read_bytes() == stopped


def wait(condition: Callable[[], bool], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
