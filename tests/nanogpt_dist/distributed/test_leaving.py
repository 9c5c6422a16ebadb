"""How ranks leave after an error, where their process group cannot be destroyed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import processes, verdict
from tests.conftest import CLONE, TINY

WITHIN_S = 45  # of them 10 are torch's imports where two cores are busy


def end_of(fault: str, corpus: Path, folder: Path, **environment: str) -> list[str]:
    """The lines of a training of two ranks with that `fault`; it must end within WITHIN_S."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    line += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "tests.ranks.failing"]
    line += ["train", "--dataset", str(corpus), *TINY, "--max-iters", "50"]
    done = subprocess.Popen(
        [*line, "--out-dir", str(folder / "run"), "--no-tensorboard"],
        cwd=CLONE,
        env={
            **os.environ,
            **environment,
            "FAULT": fault,
            verdict.VARIABLE: str(folder / "verdict.json"),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, told = done.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        mark = str(folder / "verdict.json")
        processes.send(signal.SIGKILL, processes.marked(verdict.VARIABLE, mark))
        pytest.fail(f"still there after {WITHIN_S} s: {done.communicate()[1][-2000:]}")
    return [line for line in told.splitlines() if line.startswith(("nanogpt", "destroy"))]


FAULTS = [
    ("bug", 70, "ValueError: the disk is on fire"),
    ("memory", 70, "out of memory after step 2, with micro-batches of 4; add --auto-batch-size"),
]


@pytest.mark.parametrize(("fault", "code", "says"), FAULTS)
def test_a_rank_that_fails_says_so_first_and_nobody_hangs(
    fault: str,
    code: int,
    says: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    assert_told(end_of(fault, corpus, tmp_path), tmp_path, code, says)


def assert_told(told: list[str], folder: Path, code: int, says: str) -> None:
    """That rank 1 has told of its fault first, and so have the verdict and the run's status."""
    assert says in told[0], told
    assert "(rank 1)" in told[0], told
    left = verdict.read(folder / "verdict.json")
    assert left is not None
    assert (left.code, left.rank, left.agreed) == (code, 1, False)
    status = json.loads((folder / "run/status.json").read_text())
    assert (status["verdict"], status["code"]) == ("failed", code), status
    assert says in status["message"]
