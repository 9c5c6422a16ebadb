"""Several processes at one folder: under torchrun and as a Slurm array, the same bytes as one
process alone.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from nanogpt_dist.errors import UsageError
from nanogpt_dist.storage.runlock import lock_holder
from prepare.units.journal import LOCK, WORK
from prepare.units.ranks import Ranks
from tests.conftest import Run, command, hashes


def test_under_torchrun(source: Path, prepared: Path, nanogpt: Run, tmp_path: Path) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "bpe:300",
        "--out",
        "out",
        "--json",
    ]
    done = nanogpt(*line, ranks=2)
    assert json.loads(done.stdout)["documents"] == 3000
    assert hashes(tmp_path / "out") == hashes(prepared)
    again = nanogpt(*line, ranks=2)
    assert json.loads(again.stdout)["reused"] is True


def array(
    task: int,
    tasks: int,
    source: Path,
    folder: Path,
    tokenizer: str = "bpe:300",
) -> "subprocess.Popen[str]":
    slurm = {"COUNT": tasks, "ID": 1 + 2 * task, "MIN": 1, "MAX": 2 * tasks - 1, "STEP": 2}
    variables = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in slurm.items()}
    line = command(
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        tokenizer,
        "--out",
        "out",
        "--workers",
        "1",
    )
    return subprocess.Popen(
        line,
        cwd=folder,
        env={**os.environ, **variables, "SLURM_ARRAY_JOB_ID": "77"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_as_a_slurm_array(order: list[int], source: Path, prepared: Path, tmp_path: Path) -> None:
    tasks = {task: array(task, 3, source, tmp_path) for task in order}
    told = {task: process.communicate(timeout=100) for task, process in tasks.items()}
    assert [process.returncode for process in tasks.values()] == [0, 0, 0], told
    assert [bool(told[task][0]) for task in range(3)] == [True, False, False]
    assert hashes(tmp_path / "out") == hashes(prepared)


@pytest.mark.parametrize(("tokenizer", "failing"), [("byte", 1), ("bpe:300", 0)])
def test_each_rank_hears_of_anothers_end(tokenizer: str, failing: int, tmp_path: Path) -> None:
    """The second unit, which is the other rank's, cannot be encoded, or not even be read by the
    leading one.
    """
    good = "".join(
        json.dumps({"text": f"document {i} " + "some text " * 100}) + "\n" for i in range(1200)
    )
    source = tmp_path / "a.jsonl"
    source.write_bytes(good.encode() + b'{"text": "caf\xe9"}\n')
    tasks = [array(task, 2, source, tmp_path, tokenizer) for task in (0, 1)]
    told = [process.communicate(timeout=100)[1] for process in tasks]
    assert tasks[failing].returncode == 65
    assert "a.jsonl:1201:13: byte 0xe9 is not UTF-8" in told[failing]
    assert tasks[1 - failing].returncode in (65, 74)
    assert f"rank {failing}" in told[1 - failing]


def test_arrays_with_gaps_are_refused() -> None:
    slurm = {"COUNT": 3, "ID": 9, "MIN": 1, "MAX": 9, "STEP": 1}
    with pytest.raises(UsageError, match="--array=0-2"):
        Ranks.of({f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in slurm.items()})
    assert Ranks.of({}) == Ranks.of({"WORLD_SIZE": "1", "RANK": "0"}) == Ranks()


@pytest.mark.parametrize("limit", [["--max-documents", "100"], ["--max-tokens", "30000"]])
def test_ranks_stop_where_the_limit_is(
    limit: list[str],
    source: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "byte",
        "--val-fraction",
        "0.2",
        *limit,
    ]
    nanogpt(*line, "--out", "alone")
    nanogpt(*line, "--out", "ranks", ranks=2)
    assert hashes(tmp_path / "ranks") == hashes(tmp_path / "alone")


def test_standard_input_is_for_one(source: Path, tmp_path: Path) -> None:
    task = array(1, 2, Path("-"), tmp_path, "byte")
    assert "several ranks cannot share standard input" in task.communicate(timeout=60)[1]
    assert task.returncode == 2


def test_ranks_end_with_torchrun(source: Path, tmp_path: Path) -> None:
    """Killed, torchrun leaves its ranks behind; they must not hold the folder."""
    line = command(
        "prepare", "text", "--source", source, "--tokenizer", "bpe:300", "--out", "out", ranks=2
    )
    torchrun = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lock = tmp_path / "out" / WORK / LOCK
    while lock_holder(lock) is None and torchrun.poll() is None:
        time.sleep(0.005)
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 20
    while lock_holder(lock) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock_holder(lock) is None
