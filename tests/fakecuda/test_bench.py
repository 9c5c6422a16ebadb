"""`nanogpt bench` on the fake GPU: each runs to its end, and its figures agree with each other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakecuda.runs import SIZE
from tests.fork_server import Done

Gpu = Callable[..., Done]
BATCH = ["--batch-size", 2, "--gradient-accumulation-steps", 4]
TRAIN = ["bench", "train", *SIZE, *BATCH, "--device", "cuda", "--updates", 3, "--json"]
SAMPLE = ["bench", "sample", *SIZE, "--device", "cuda", "--rounds", 2, "--json"]


def test_train(gpu: Gpu) -> None:
    found = gpu(*TRAIN, "--dtype", "bfloat16", name="NVIDIA A100-SXM4-40GB").json()
    assert (found["device"], found["dtype"], found["layout"]) == ("cuda", "bfloat16", "single")
    assert found["peak_tflops"] == 312
    assert found["batch_tokens"] == 8 * 32
    assert found["tokens_per_second"] == pytest.approx(8 * 32 / found["ms_per_update"] * 1e3)
    assert found["phases"].keys() == {"data", "forward", "backward", "optimizer", "rest"}
    # weights, gradients, moments: 16 bytes a parameter, and what a pass makes on top
    assert found["memory_bytes"] > 16 * found["parameters"]


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.thorough)])
def test_train_on_two_ranks_with_a_trace(gpu: Gpu, tmp_path: Path, strategy: str) -> None:
    found = gpu(*TRAIN, "--strategy", strategy, "--profile", "trace", ranks=2).json()
    assert found["ranks"] == 2
    assert found["phases"]["communication"] > 0
    traces = sorted((tmp_path / "trace").glob("*-rank?.pt.trace.json"))
    assert len(traces) == 2
    names = {event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer", "aten::mm"} <= names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sample(gpu: Gpu, dtype: str) -> None:
    asked = ["--num-samples", 3, "--prompt-tokens", 5, "--max-new-tokens", 7, "--dtype", dtype]
    found = gpu(*SAMPLE, *asked).json()
    assert found["device"] == "cuda"
    assert found["weights"].startswith(dtype)
    assert min(found["prefill_ms"], found["ms_per_update"], found["peak_tflops"]) > 0
    assert found["memory_bytes"] > found["parameters"]


def test_data_is_the_hosts(gpu: Gpu) -> None:
    done = gpu("bench", "data", *BATCH, "--megabytes", 1, "--updates", 3, "--json")
    assert done.json()["tokens_per_second"] > 0
    assert not done.record


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_io(gpu: Gpu, ranks: int) -> None:
    flags = ["--strategy", "fsdp"] if ranks else []
    done = gpu("bench", "io", *SIZE, "--rounds", 2, "--json", *flags, ranks=ranks)
    found = done.json()
    assert found["bytes"] > 12 * found["parameters"]
    assert min(found["ms_per_update"], found["save_ms"], found["load_ms"]) > 0
    # a checkpoint is copied to pinned memory, while the device goes on
    copies = [each for each in done.record if each.kind == "down"]
    assert copies
    assert "race" not in {each.kind for each in done.record}


def test_an_unknown_gpu_is_measured(gpu: Gpu) -> None:
    found = gpu(*TRAIN, "--dtype", "bfloat16", name="NVIDIA GeForce RTX 2050 Laptop GPU").json()
    assert 0 < found["peak_tflops"] < 100
    assert found["mfu"] > 0
