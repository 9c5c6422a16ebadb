"""`make gpu` itself, in a small size: what it runs on a card runs through here first."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CLONE

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]
# The others begin processes of their own by the dozen.
TESTS = ["test_step.py", "test_sampling.py", "test_saving.py", "test_attention.py"]


def run(environment: dict[str, str], *line: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, line)],
        cwd=CLONE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_tests_for_a_gpu_pass(
    fake_gpu: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "tests.json"
    files = [f"tests/gpu/{name}" for name in TESTS]
    options = ["-p", "no:cacheprovider", "--gpu-results", path, "--basetemp", tmp_path / "base"]
    run(fake_gpu(), "-m", "pytest", "-m", "gpu", *files, *options)
    told = json.loads(path.read_text())
    assert told["about"]["simulated"]
    assert told["failed"] == 0
    assert told["passed"] >= 30
    assert told["skipped"] <= 1
    assert any(test.get("not_checked") for test in told["tests"].values())


def test_the_benchmark_runs_its_cases_and_says_which_it_left_out(
    fake_gpu: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "bench.json"
    said = run(fake_gpu(), "benchmarks/gpu.py", "--small", "--minutes", 0.7, "--out", path)
    told = json.loads(path.read_text())
    failed = {name: case["failed"] for name, case in told["cases"].items() if "failed" in case}
    assert failed.keys() == {"nanoGPT, 124m, micro-batch 12"}, failed
    assert told["cases"]["124m"]["tokens_per_second"] > 0
    assert told["cases"]["124m, micro-batch 12"]["ratio"] > 0
    assert len(told["cases"]) + len(told["left_out"]) == 32
    assert str(path) in said
