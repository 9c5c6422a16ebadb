"""`nanogpt plan` of this machine, where it is the fake GPU, and what a training says of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakecuda.runs import TRAIN
from tests.fork_server import Done

Gpu = Callable[..., Done]
A100 = {"name": "NVIDIA A100-SXM4-80GB", "capability": "8.0"}
# 16 million parameters: an eighth of what somebody has published for it
WIDE = ["--n-layer", 5, "--n-embd", 512, "--n-head", 8, "--max-iters", 2, "--log-interval", 1]


@pytest.mark.thorough
def test_a_gpu_of_this_machine_has_what_its_capability_says(gpu: Gpu) -> None:
    asked = ("plan", "gpt2-124m", "--gpus", 1, "--dtype", "tf32", "--peak", 10)
    old = {"name": "Quadro P6000", "capability": "6.1"}  # which the catalogue does not have
    refused = gpu(*asked, code=78, **old)
    assert "has no tf32: type --dtype float16" in refused.stderr
    assert "Next: " in gpu(*asked, **{**old, "capability": "8.6"}).stdout


@pytest.mark.thorough
def test_a_training_logs_the_speed_of_its_plan(gpu: Gpu, corpus: Path, tmp_path: Path) -> None:
    line = [*TRAIN[1:], *WIDE, "--dtype", "bfloat16", "--dataset", corpus]
    gpu("train", *line, "--out-dir", "run", **A100)
    planned = gpu("plan", *line, "--gpus", 1, "--json", **A100).json()
    text = (tmp_path / "run/metrics.jsonl").read_text()
    logged = [each for each in map(json.loads, text.splitlines()) if "loss" in each]
    speeds = [each["expected_tokens_per_second"] for each in logged]
    assert speeds == [planned["step"]["tokens_per_second"]] * 2
