"""A campaign, not a test: trainings on two nodes of a real Slurm that are preempted, run out of
time, or are cancelled.

    python tests/faults/slurm_preempt.py --proctrack cgroup

Needs root, Slurm and munge (Debian: slurm-wlm, munge), and scripts that start and stop a cluster of
two virtual nodes on this machine; `--proctrack cgroup` also a mounted freezer. Each training saves,
is requeued, resumes and finishes, its weights equal by sha256 to those of one that was left alone;
a cancelled one stays away. Prints one JSON object.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.conftest import CLONE, SHARED, TINY, build

FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
SCRIPTS = SHARED / "cluster"


def missing() -> str | None:
    """What this machine lacks for the campaign; None if nothing."""
    if os.geteuid():
        return "needs root"
    tools = [
        tool for tool in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(tool) is None
    ]
    if tools:
        return f"needs {', '.join(tools)}"
    return None if (SCRIPTS / "slurm-start.sh").exists() else f"needs {SCRIPTS}/slurm-start.sh"


@contextmanager
def cluster(proctrack: str) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes, on which partition `high` preempts partition `debug`; the environment
    for its commands.
    """
    home = Path(tempfile.mkdtemp(prefix="slurm-", dir="/run"))
    home.chmod(0o755)
    port = 17000 + os.getpid() % 5000 * 3  # of slurmctld; the nodes have the two above it
    ports = {"NG_CTLPORT": str(port), "NG_SLURMD_PORT": str(port)}
    started = {**os.environ, "NG_PROCTRACK": proctrack, "PYTHONPATH": str(CLONE), **ports}
    try:
        subprocess.run(
            [SCRIPTS / "slurm-start.sh", home],
            env=started,
            check=True,
            timeout=60,
            stdout=sys.stderr,
        )
        yield {**started, "SLURM_CONF": str(home / "slurm.conf")}
    finally:
        subprocess.run(
            [SCRIPTS / "slurm-stop.sh", home], check=False, timeout=120, stdout=sys.stderr
        )
        shutil.rmtree(home, ignore_errors=True)


class Training:
    """`nanogpt launch --nnodes 2 --slurm train` in partition debug; its run folder is out/NAME."""

    def __init__(
        self,
        folder: Path,
        slurm: dict[str, str],
        name: str,
        updates: int,
        *options: str,
    ) -> None:
        self.folder, self.slurm, self.run = folder, slurm, folder / "out" / name
        launch = [
            "launch",
            "--slurm",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--shutdown-timeout",
            "10",
        ]
        train = [
            "train",
            *TINY,
            "--vocab-size",
            "257",
            "--dataset",
            "data",
            "--out-dir",
            f"out/{name}",
        ]
        train += [
            "--max-iters",
            str(updates),
            "--eval-interval",
            str(updates),
            "--log-interval",
            "500",
        ]
        line = [
            "-m",
            "nanogpt_dist",
            *launch,
            "--partition",
            "debug",
            "--job-name",
            name,
            *options,
            *train,
        ]
        self.job = re.findall(r"job (\d+)", self.type(sys.executable, *line))[0]
        self.log = folder / f"{name}-{self.job}.out"

    def type(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.slurm, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def shown(self) -> dict[str, str]:
        """What Slurm knows of the job: JobState, Restarts, ExitCode …"""
        return dict(
            re.findall(r"(\w+)=(\S+)", self.type("scontrol", "show", "job", "--oneliner", self.job))
        )

    def wait_for_updates(self) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait(lambda: metrics.exists() and metrics.stat().st_size > 0)

    def wait(self, condition: Callable[[], bool], timeout_s: float = 900) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            log = self.log.read_text() if self.log.exists() else ""
            assert time.monotonic() < deadline, (
                f"timed out with job {self.shown()['JobState']}:\n{log[-3000:]}"
            )
            time.sleep(0.1)

    def finish(self) -> dict[str, Any]:
        """Wait until the job has ended, and how it did. Slurm lets a requeued job wait for two
        minutes; we do not.

        Some seconds it has to: the credential of its first start is revoked for all that start in
        the same second.
        """
        hurried = set()

        def ended() -> bool:
            shown = self.shown()
            waits = shown["JobState"] == "PENDING" and shown["Reason"] == "BeginTime"
            if waits and shown["Restarts"] not in hurried:
                hurried.add(shown["Restarts"])
                self.type("scontrol", "update", f"job={self.job}", "StartTime=now+3")
            return shown["JobState"] in FINISHED

        self.wait(ended)
        shown, log = self.shown(), self.log.read_text()
        saved = [int(step) for step in re.findall(r"stopped and saved at step (\d+)", log)]
        models = sorted(self.run.glob("checkpoints/step-*/model.safetensors"))
        weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in models]
        return {
            "state": shown["JobState"],
            "exit_code": shown["ExitCode"],
            "requeued": int(shown["Restarts"]),
            "saved_at": saved,
            "resumed_at": [int(step) for step in re.findall(r": going on from step-(\d+)", log)],
            "weights": weights[-1] if weights else None,
        }


def prepare(folder: Path) -> None:
    """FOLDER/data: a module of Python's, byte by byte."""
    shutil.copy(Path(os.__file__).parent / "ast.py", folder / "text.txt")
    build("text", folder / "data", sources=[folder / "text.txt"], tokenizer="byte", workers=1)


def preempt(training: Training) -> None:
    """A job in the partition that preempts debug's."""
    training.type(
        "sbatch",
        "--partition=high",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=true",
    )
    training.wait(lambda: training.shown()["Restarts"] != "0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proctrack", choices=("cgroup", "linuxproc"), default="linuxproc")
    parser.add_argument("--updates", type=int, default=12000, help="long enough for a minute")
    given = parser.parse_args()
    if reason := missing():
        sys.exit(f"{reason}: nothing was tried")
    found: dict[str, Any] = {"proctrack": given.proctrack, "updates": given.updates}
    with tempfile.TemporaryDirectory() as name, cluster(given.proctrack) as slurm:
        folder = Path(name)
        prepare(folder)

        def start(name: str, *options: str) -> Training:
            return Training(folder, slurm, name, given.updates, *options)

        found["left-alone"] = start("left-alone").finish()

        training = start("preempted")
        training.wait_for_updates()
        preempt(training)
        found["preempted"] = training.finish()

        # The batch file is signalled 70 s before the end of two minutes, or, as Slurm looks twice a
        # minute, earlier.
        found["out-of-time"] = start("out-of-time", "--sbatch=--time=2").finish()

        training = start("early")  # the signal finds interpreters that are still starting
        training.wait(
            lambda: f"{training.job}.0 " in training.type("squeue", "--steps", "--noheader")
        )
        training.type("scancel", "--batch", "--signal=USR1", training.job)
        found["early"] = training.finish()

        training = start(
            "terminated"
        )  # as where Slurm ends the steps of a preempted job without telling the batch file
        training.wait_for_updates()
        training.type("scancel", "--signal=TERM", training.job)
        found["terminated"] = training.finish()

        training = start("cancelled")
        training.wait_for_updates()
        training.type("scancel", training.job)
        found["cancelled"] = training.finish()

    alone = found["left-alone"]["weights"]
    found["equal"] = {
        name: found[name]["weights"] == alone
        for name in ("preempted", "out-of-time", "early", "terminated")
    }
    print(json.dumps(found))
    sys.exit(not all(found["equal"].values()) or found["cancelled"]["state"] != "CANCELLED")


if __name__ == "__main__":
    main()
