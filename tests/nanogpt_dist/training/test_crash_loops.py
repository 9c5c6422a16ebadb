"""A run that dies again and again before it has saved anything new: once from the checkpoint
before, then no more.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_dist.errors import ConfigError, StorageError
from nanogpt_dist.training import crash_loops
from tests.conftest import CLONE, TINY
from tests.nanogpt_dist.small import go, tiny


def crash(corpus: Path, run: Path, fault: int, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tests.ranks.crashing", "train", "--dataset", str(corpus), *TINY]
    line += [
        "--max-iters",
        "12",
        "--save-interval",
        "2",
        "--out-dir",
        str(run),
        "--no-tensorboard",
        *more,
    ]
    line += ["--no-async-save"]  # what is saved before the fault is known then
    environment = {**os.environ, "FAULT": str(fault)}
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, timeout=120, cwd=CLONE
    )


def starts(run: Path) -> list[int]:
    """The steps that attempts started from."""
    entries = [json.loads(line) for line in (run / crash_loops.ATTEMPTS).read_text().splitlines()]
    return [entry["from"] for entry in entries if "from" in entry]


@pytest.mark.thorough
def test_a_fault_at_a_fixed_step_ends_after_four_attempts(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(3):
        assert crash(corpus, run, fault=7).returncode == -9
    assert starts(run) == [0, 6, 6], "the first one saved something new"
    assert crash(corpus, run, fault=7).returncode == -9
    back = crash(corpus, run, fault=7)
    assert back.returncode == -9
    assert "starting from step-00000004, once" in back.stderr
    refused = crash(corpus, run, fault=7)
    assert refused.returncode == 78
    assert refused.stderr.startswith(
        "nanogpt: error: 4 attempts in a row ended without a checkpoint after step 6"
    )
    assert re.search(r"; change a setting, or rm \S+run/attempts.jsonl to try", refused.stderr)
    assert len(refused.stderr.splitlines()) == 1
    assert starts(run) == [0, 6, 6, 6, 4]
    other = crash(corpus, run, 99, "--learning-rate", "5e-3")
    assert other.returncode == 0, other.stderr


@pytest.mark.thorough
def test_the_launcher_stops_restarting(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = (
        "import runpy, sys; from launch import torchrun, supervisor; import os;"
        "line = torchrun.command(2, torchrun.Nodes(), 10, sys.argv[1:]);"
        "line[line.index('nanogpt_dist')] = 'tests.ranks.crashing';"
        "sys.exit(supervisor.run(supervisor.Run(line, dict(os.environ), 60, 10)))"
    )
    line = [
        sys.executable,
        "-c",
        script,
        "train",
        "--dataset",
        str(corpus),
        *TINY,
        "--max-iters",
        "9",
    ]
    line += ["--save-interval", "2", "--no-async-save", "--out-dir", str(run), "--no-tensorboard"]
    environment = {**os.environ, "FAULT": "3", "PYTHONPATH": str(CLONE)}
    done = subprocess.run(
        line, env=environment, capture_output=True, text=True, timeout=200, cwd=CLONE
    )
    assert done.returncode == 78, done.stderr
    assert starts(run) == [0, 2, 2, 2, 2], "there is no checkpoint before step 2"
    assert "4 attempts in a row ended without a checkpoint after step 2" in done.stderr


def test_orderly_ends_and_other_settings_do_not_count(corpus: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tiny(corpus, tmp_path / "run")
    go(config)
    settings = crash_loops.digest(config, 1)
    for number in range(3):
        assert crash_loops.steps_back(run, 8, settings) == 0
        crash_loops.begun(run, 8, 8, settings)
        if number == 1:
            crash_loops.ended(run, "stopped")
    crash_loops.begun(run, 8, 8, settings)
    assert crash_loops.steps_back(run, 8, settings) == 0
    crash_loops.begun(run, 8, 8, settings)
    assert crash_loops.steps_back(run, 8, settings) == 1
    assert crash_loops.steps_back(run, 10, settings) == 0, "a new checkpoint"
    assert (
        crash_loops.steps_back(
            run, 8, crash_loops.digest(config.model_copy(update={"dropout": 0.5}), 1)
        )
        == 0
    )
    assert crash_loops.steps_back(run, 8, crash_loops.digest(config, 2)) == 0
    assert crash_loops.digest(config.model_copy(update={"out_dir": "elsewhere"}), 1) == settings
    crash_loops.begun(run, 8, 4, settings)
    with pytest.raises(ConfigError, match="4 attempts in a row"):
        crash_loops.steps_back(run, 8, settings)


@pytest.mark.parametrize("torn", [b'{"newest": 8, "fr', b"\x00\xff\n", b"[1]\n"])
def test_a_torn_line_is_no_end(torn: bytes, tmp_path: Path) -> None:
    for _ in range(2):
        crash_loops.begun(tmp_path, 8, 8, "s")
    with open(tmp_path / crash_loops.ATTEMPTS, "ab") as file:
        file.write(torn)
    crash_loops.begun(tmp_path, 8, 8, "s")
    assert crash_loops.steps_back(tmp_path, 8, "s") == 0
    for _ in range(2):
        crash_loops.begun(tmp_path, 8, 8, "s")
    assert crash_loops.steps_back(tmp_path, 8, "s") == 1


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_no_attempt_is_noted_elsewhere(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / crash_loops.ATTEMPTS
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    assert crash_loops.steps_back(path.parent, 8, "s") == 0
    with pytest.raises(StorageError, match=r"attempts\.jsonl is a link, .*; move it away"):
        crash_loops.begun(path.parent, 8, 8, "s")
    assert not (tmp_path / "elsewhere").exists()
