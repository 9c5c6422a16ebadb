"""`nanogpt launch --slurm`: the batch file, run by bash with a Slurm that is played, and one time by a real one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from launch import job_options, slurm
from nanogpt_dist.errors import MAX_LINE, CannotCreateError, ConfigError, MissingInputError, UsageError
from tests.conftest import CLONE
from tests.faults import slurm_preempt

# What the batch file calls, played: each notes its arguments; srun runs the command as the task of node 1.
PLAYED = {
    "scontrol": """\
        echo "scontrol $*" >> "$PLAY/calls"
        case "$1 $2" in
        "show hostnames") printf 'n7\\nn8\\n' ;;
        "show node") echo "NodeName=$4 Arch=x86_64 NodeAddr=10.0.0.$4 NodeHostName=$4 Version=22.05" ;;
        "show job") echo "JobId=12 JobName=x JobState=${STATE:-RUNNING} Reason=None" ;;
        requeue*) exit "${REQUEUE:-0}" ;;
        esac""",
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


def job(*arguments: str, nnodes: int = 2, ranks: str = "8", timeout_s: int = 60, **given: Any) -> job_options.Job:
    return job_options.make(nnodes, ranks, list(arguments) or ["train"], given, 0, timeout_s, Path.cwd())


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
        environment = {"PATH": f"{play}:{os.environ['PATH']}", "PLAY": str(play), "SLURM_JOB_ID": "12", **how}
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


# ---- the batch file


def test_what_slurm_is_asked_for() -> None:
    text = slurm.script(
        job("train", "gpt2-124m", partition="gpu", time="12:00:00", account="a", qos="q", mem="64G", cpus_per_task=32),
        {},
    )
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        *("job-name=nanogpt-gpt2-124m", "nodes=2", "ntasks-per-node=1", "cpus-per-task=32", "gpus-per-node=8"),
        *("mem=64G", "time=12:00:00", "partition=gpu", "account=a", "qos=q", "output=%x-%j.out", "open-mode=append"),
        *("signal=B:USR1@120", "requeue"),
    ]


def test_what_is_passed_on_stands_last_and_may_overrule() -> None:
    text = slurm.script(job(sbatch=["--constraint=a100&ib", "-x n3"]), {})
    asked = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked[-2:] == ["#SBATCH --constraint=a100&ib", "#SBATCH -x n3"]


@pytest.mark.parametrize(
    ("arguments", "given", "gpus"),
    [
        (["train", "gpt2-124m"], {}, 8),
        (["train", "--device", "cpu"], {}, 0),
        (["train", "--device=cpu"], {}, 0),
        (["train", "--device", "cuda", "cpu"], {}, 8),
        (["prepare", "openwebtext"], {}, 0),
        (["eval", "out/a"], {"gpus_per_node": 4}, 4),
        (["eval", "out/a"], {"gpus_per_node": 0}, 0),
    ],
)
def test_gpus(arguments: list[str], given: dict[str, int], gpus: int) -> None:
    made = job(*arguments, **given)
    assert made.gpus == gpus
    assert ("--gpus-per-node" in slurm.script(made, {})) == (gpus > 0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "gpt2-124m"], "nanogpt-gpt2-124m"),
        (["train", "My Runs/Big_One.toml"], "nanogpt-big-one"),
        (["train", "--max-iters", "5"], "nanogpt-train"),
        (["train", "x" * 99], "nanogpt-" + "x" * 32),
    ],
)
def test_the_jobs_name(arguments: list[str], name: str) -> None:
    assert job(*arguments).name == name


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        *[("90", 5400), ("90:30", 5430), ("2:00:00", 7200), ("1-2", 93600), ("1-0:30", 88200), ("1-0:0:5", 86405)],
        *[("UNLIMITED", None), ("", None), ("1:2:3:4", None)],
    ],
)
def test_time_limits(time: str, expected: int | None) -> None:
    assert slurm.seconds(time) == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ranks": "auto"}, "--nproc-per-node 8"),
        ({"nnodes": 0}, "--nnodes"),
        ({"time": "3"}, "lower --shutdown-timeout"),
        ({"job_name": "Mine!"}, "small letters"),
        ({"mem": "64GB"}, "like 64G"),
        ({"partition": "a b"}, "--partition 'a b'"),
        ({"qos": "a\n#SBATCH --wrap=x"}, "--qos"),
        ({"sbatch": ["constraint=a100"]}, "--sbatch=--constraint=a100"),
        ({"sbatch": ["--x\ny"]}, "no option of sbatch"),
    ],
)
def test_what_cannot_be_a_job_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        slurm.script(job(**how), {})
    assert message in str(caught.value)
    assert len(str(caught.value)) <= MAX_LINE


def test_fresh_is_refused_as_a_requeued_job_could_not_go_on() -> None:
    with pytest.raises(UsageError, match="leave out --fresh"):
        job("train", "--fresh")


# ---- run by bash


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_every_node_gets_the_exact_arguments(play: Path, arguments: list[str]) -> None:
    arguments = ["train", *arguments]
    assert Played(play, job(*arguments)).end() == 0
    argv = [os.fsdecode(text) for text in (play / "argv").read_bytes().split(b"\0")[:-1]]
    assert argv == [
        *("-m", "nanogpt_dist", "launch", "--node-rank", "1", "--rdzv-endpoint", "10.0.0.n7:10012"),
        *("--nnodes", "2", "--nproc-per-node", "8", "--max-restarts", "0", "--shutdown-timeout", "60", *arguments),
    ]


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
@pytest.mark.parametrize("how", [{}, {"DEAF": "1"}, {"LATE": "0.5"}], ids=["saves", "not yet listening", "no step yet"])
def test_a_signal_is_passed_on_to_the_step_and_the_job_requeued(
    play: Path, number: signal.Signals, how: dict[str, str]
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


# ---- the command line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["launch", *arguments])
    if result.exception:
        raise result.exception
    return result.output


SMALL = ("--slurm", "--nnodes", "2", "--nproc_per_node", "8")


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_dry_run_prints_the_file_and_submits_nothing(here: Path) -> None:
    text = launch(*SMALL, "--sbatch", "--constraint=a100", "--sbatch=-x n3", "--dry-run", "train", "gpt2-124m")
    assert text.startswith(f"#!/bin/bash\n{slurm.MARK}\n")
    assert "#SBATCH --constraint=a100\n#SBATCH -x n3\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert not list(here.iterdir())


def test_the_file_is_kept_and_submitted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(here, monkeypatch, 'cp "$2" submitted; echo "12;main"')
    said = launch(*SMALL, "train", "gpt2-124m")
    assert said == ("job 12 of nanogpt-gpt2-124m.sbatch; see: tail -F nanogpt-gpt2-124m-12.out; end it: scancel 12\n")
    text = (here / "nanogpt-gpt2-124m.sbatch").read_text()
    assert text == (here / "submitted").read_text() == launch(*SMALL, "--dry-run", "train", "gpt2-124m")
    assert f"\ncd -- {here} || exit 66\n" in text
    assert f"\nexport PYTHONPATH={CLONE}" in text
    launch(*SMALL, "--time", "1-0", "train", "gpt2-124m")  # over the earlier one
    (here / "mine.sbatch").write_text("#!/bin/bash\n")
    with pytest.raises(CannotCreateError, match="rename it"):
        launch(*SMALL, "--job-name", "mine", "train")
    assert (here / "mine.sbatch").read_text() == "#!/bin/bash\n"


def test_a_refusal_of_sbatch_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(here, monkeypatch, "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(ConfigError, match="invalid partition specified: gpu; change the options"):
        launch(*SMALL, "train")


def test_without_slurm(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(MissingInputError, match="login node"):
        launch(*SMALL, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "gpu", "train"], "--partition is for job files: add --slurm"),
        (["--slurm", "--image", "a", "--nproc-per-node", "1", "train"], "add --kubernetes"),
        (["--mem", "1G", "train"], "add --slurm or --kubernetes"),
        (["--slurm", "--kubernetes", "train"], "one of them"),
        (["--slurm", "--nproc-per-node", "1", "--node-rank", "0", "train"], "leave out --node-rank"),
        (["--slurm", "train"], "--nproc-per-node 8"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        launch(*arguments)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= MAX_LINE


# ---- a real Slurm


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Callable[..., slurm_preempt.Training]]:
    if reason := slurm_preempt.missing():
        pytest.skip(f"a real Slurm {reason}")
    slurm_preempt.prepare(tmp_path)
    with slurm_preempt.cluster("linuxproc") as environment:
        yield lambda *given: slurm_preempt.Training(tmp_path, environment, *given)


def test_a_preempted_training_ends_with_the_same_weights(real: Callable[..., slurm_preempt.Training]) -> None:
    alone = real("alone", 400).finish()
    assert (alone["state"], alone["requeued"]) == ("COMPLETED", 0)
    training = real("preempted", 400)
    training.wait_for_updates()
    slurm_preempt.preempt(training)
    found = training.finish()
    assert (found["state"], found["requeued"], found["weights"]) == ("COMPLETED", 1, alone["weights"])
    assert found["saved_at"] == found["resumed_at"] != []
