"""`nanogpt launch --slurm`: what the batch file asks for, what is refused, and what the command
does with it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from launch import job_options, slurm
from nanogpt_dist.errors import (
    MAX_LINE,
    CannotCreateError,
    ConfigError,
    MissingInputError,
    UsageError,
)
from tests.conftest import CLONE


def job(
    *arguments: str,
    nnodes: int = 2,
    ranks: str = "8",
    timeout_s: int = 60,
    **given: Any,
) -> job_options.Job:
    return job_options.make(
        nnodes, ranks, list(arguments) or ["train"], given, 0, timeout_s, Path.cwd()
    )


# ---- the batch file


def test_what_slurm_is_asked_for() -> None:
    text = slurm.script(
        job(
            "train",
            "gpt2-124m",
            partition="gpu",
            time="12:00:00",
            account="a",
            qos="q",
            mem="64G",
            cpus_per_task=32,
        ),
        {},
    )
    asked = [
        line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")
    ]
    assert asked == [
        *(
            "job-name=nanogpt-gpt2-124m",
            "nodes=2",
            "ntasks-per-node=1",
            "cpus-per-task=32",
            "gpus-per-node=8",
        ),
        *(
            "mem=64G",
            "time=12:00:00",
            "partition=gpu",
            "account=a",
            "qos=q",
            "output=%x-%j.out",
            "open-mode=append",
        ),
        *("signal=B:USR1@120", "requeue"),
    ]


def test_what_is_passed_on_stands_last_and_may_overrule() -> None:
    text = slurm.script(job(sbatch=["--constraint=a100&ib", "-x n3"]), {})
    asked = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked[-2:] == ["#SBATCH --constraint=a100&ib", "#SBATCH -x n3"]


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        ("train mine.toml", False),
        ("train --max-iters 3 mine.toml --compile=False", False),
        ("train mine.toml --device cuda", True),
        ("train run", False),
        ("train gpt2-124m", True),
        ("train gpt2-124m --device=cpu", False),
        ("train nothing.toml", True),
        ("eval mine.toml", True),
    ],
)
def test_no_gpus_where_a_file_says_cpu(
    arguments: str,
    gpus: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for file in (Path("mine.toml"), Path("run/config.toml")):
        file.write_text('device = "cpu"\n')
    line = ["launch", "--slurm", "--nproc-per-node", "2", "--dry-run", *arguments.split()]
    assert (
        "--gpus-per-node=2" in CliRunner().invoke(app, line, catch_exceptions=False).stdout
    ) == gpus


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
        *[
            ("90", 5400),
            ("90:30", 5430),
            ("2:00:00", 7200),
            ("1-2", 93600),
            ("1-0:30", 88200),
            ("1-0:0:5", 86405),
        ],
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
    text = launch(
        *SMALL, "--sbatch", "--constraint=a100", "--sbatch=-x n3", "--dry-run", "train", "gpt2-124m"
    )
    assert text.startswith(f"#!/bin/bash\n{slurm.MARK}\n")
    assert "#SBATCH --constraint=a100\n#SBATCH -x n3\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert not list(here.iterdir())


def test_the_file_is_kept_and_submitted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(here, monkeypatch, 'cp "$2" submitted; echo "12;main"')
    said = launch(*SMALL, "train", "gpt2-124m")
    assert said == (
        "job 12 of nanogpt-gpt2-124m.sbatch; see: tail -F nanogpt-gpt2-124m-12.out; end it: "
        "scancel 12\n"
    )
    text = (here / "nanogpt-gpt2-124m.sbatch").read_text()
    assert (
        text
        == (here / "submitted").read_text()
        == launch(*SMALL, "--dry-run", "train", "gpt2-124m")
    )
    assert f"\ncd -- {here} || exit 66\n" in text
    assert f"\nexport PYTHONPATH={CLONE}" in text
    launch(*SMALL, "--time", "1-0", "train", "gpt2-124m")  # over the earlier one
    (here / "mine.sbatch").write_text("#!/bin/bash\n")
    with pytest.raises(CannotCreateError, match="rename it"):
        launch(*SMALL, "--job-name", "mine", "train")
    assert (here / "mine.sbatch").read_text() == "#!/bin/bash\n"


def test_a_refusal_of_sbatch_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(
        here, monkeypatch, "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1"
    )
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
        (
            ["--slurm", "--nproc-per-node", "1", "--node-rank", "0", "train"],
            "leave out --node-rank",
        ),
        (["--slurm", "train"], "--nproc-per-node 8"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        launch(*arguments)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= MAX_LINE


# ---- an array: a sweep's runs


SWEEP = """
preset = "quickstart"
device = "cpu"
[grid]
seed = [1, 2]
[[run]]
name = "wide"
"""


def test_an_array_has_a_task_for_each_run_of_a_sweep(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "rates.toml").write_text(SWEEP)
    line = ["sweep", "rates.toml", "--slurm", "--nproc-per-node", "2", "--time", "4:00:00"]

    def typed(*more: str) -> str:
        return CliRunner().invoke(app, [*line, *more], catch_exceptions=False).stdout

    text = typed("--dry-run")
    asked = [
        line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")
    ]
    assert asked == [
        *("job-name=nanogpt-rates", "nodes=1", "ntasks-per-node=1", "cpus-per-task=2"),
        *("time=4:00:00", "array=0-2", "output=%x-%A_%a.out", "open-mode=append"),
        *("signal=B:USR1@120", "requeue"),
    ]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "--gpus-per-node=2" in typed("--dry-run", "--gpus-per-node", "2")
    mixed = SWEEP.replace('device = "cpu"\n', "").replace(
        "seed = [1, 2]", 'device = ["cpu", "cuda"]'
    )
    (here / "rates.toml").write_text(mixed)
    assert "--gpus-per-node=2" in typed("--dry-run")  # the first task alone needs none
    (here / "rates.toml").write_text(SWEEP)
    fake_sbatch(here, monkeypatch, 'cp "$2" submitted; echo 12')
    assert typed() == (
        "job 12 of nanogpt-rates.sbatch; see: tail -F nanogpt-rates-12_*.out; end it: scancel 12\n"
        "Next: nanogpt sweep rates.toml --table\n"
    )
    assert (here / "submitted").read_text() == text
