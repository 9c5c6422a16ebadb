"""benchmarks/plan_memory.py: what trainings are expected to take, beside what they take."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import CLONE

WITHIN = 0.05
HAS_PEAK = sys.platform == "linux"  # /proc/self/clear_refs


def said(*options: str) -> dict[str, Any]:
    """What the script prints."""
    line = [sys.executable, str(CLONE / "benchmarks/plan_memory.py"), *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def check(rows: list[dict[str, Any]], column: str) -> None:
    assert rows
    for row in rows:
        assert row[column] == pytest.approx(row["expected"], rel=WITHIN), row


@pytest.mark.thorough
@pytest.mark.skipif(not HAS_PEAK, reason="the kernel does not say a process's peak")
@pytest.mark.parametrize(
    "case",
    ["single 1 float32 selective", "ddp 2 bfloat16 full", "fsdp 2 bfloat16", "fsdp 4 float32 none"],
)
def test_a_training_on_this_cpu_takes_what_is_expected(case: str) -> None:
    rows = said("--part", "cpu", "--only", case)["cpu"]
    check(rows, "process")
    if case.startswith("single"):
        check(rows, "tensors")


@pytest.mark.thorough
@pytest.mark.parametrize("case", ["gpt2-124m 8", "modern-124m 8 ddp"])
def test_torchs_tracker_counts_what_is_expected(case: str) -> None:
    rows = said("--part", "tracker", "--only", case, "--ranks", "8")
    check(rows["tracker"], "tracker")
