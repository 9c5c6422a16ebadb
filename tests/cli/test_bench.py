"""`nanogpt bench`: figures that agree with each other and with what was asked for, at a small
size.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

SMALL = [
    "--n-layer",
    2,
    "--n-head",
    2,
    "--n-embd",
    32,
    "--vocab-size",
    300,
    "--block-size",
    32,
    "--device",
    "cpu",
]
BATCH = ["--batch-size", 4, "--gradient-accumulation-steps", 4]
KEYS = {"tokens_per_second", "ms_per_update", "mfu", "peak_tflops", "memory_bytes"}


def told(nanogpt: Run, *arguments: Any, **how: Any) -> dict[str, Any]:
    done = nanogpt("bench", *arguments, "--json", **how)
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert "profiler_st" not in done.stderr, "torch's own log"
    return found


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.thorough)])
def test_train_on_two_ranks_with_a_trace(nanogpt: Run, tmp_path: Path, strategy: str) -> None:
    more = ["--strategy", strategy, "--updates", 4, "--profile", "trace", "--cpu-fast"]
    found = told(nanogpt, "train", *SMALL, *BATCH, *more, ranks=2)
    assert (found["batch_tokens"], found["ranks"], found["updates"]) == (16 * 32, 2, 4)
    assert found["tokens_per_second"] == pytest.approx(16 * 32 / found["ms_per_update"] * 1e3)
    assert found["ms_least"] <= found["ms_per_update"] <= found["ms_greatest"]
    assert 0 < found["mfu"] < 1
    assert (found["device"], found["device_name"]) == ("cpu", "cpu")
    parts = {"data", "forward", "backward", "optimizer", "rest"}
    assert found["phases"].keys() == parts | {"communication"}
    assert min(found["phases"].values()) > 0
    traces = sorted((tmp_path / "trace").glob("*-rank?.pt.trace.json"))
    assert len(traces) == 2
    names = {event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer", "aten::mm"} <= names


def test_the_shares_of_a_step_add_up_to_all_of_it(nanogpt: Run) -> None:
    text = nanogpt("bench", "train", *SMALL, *BATCH, "--updates", 3).stdout
    shares = re.findall(r"^\w+ +[\d,.]+ ms +([\d.]+)%$", text, re.MULTILINE)
    assert len(shares) == 5
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.3)


def test_a_model_that_memory_cannot_hold_is_refused_at_once(nanogpt: Run) -> None:
    error = nanogpt("bench", "train", "gpt2-1558m", "--n-layer", 20000, "--device", "cpu", code=78)
    assert "take a smaller model" in error.stderr


@pytest.mark.thorough
def test_train_on_data_reads_as_training_does(nanogpt: Run, corpus: Path) -> None:
    found = told(
        nanogpt, "train", *SMALL, "--vocab-size", 50304, "--dataset", corpus, "--batch-size", 4
    )
    assert (found["batch_tokens"], found["updates"]) == (4 * 32, 20), (
        "one micro-batch is an update, on a CPU"
    )
    assert "communication" not in found["phases"]
    text = nanogpt(
        "bench", "train", *SMALL, "--vocab-size", 50304, "--dataset", corpus, "--updates", 3
    ).stdout
    assert "tokens/s · mfu" in text
    assert "median of 3 (" in text
    assert nanogpt("bench", "train", "--dataset", "none", code=66).stderr.count("\n") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sample(nanogpt: Run, dtype: str) -> None:
    asked = [
        "--num-samples",
        3,
        "--prompt-tokens",
        5,
        "--max-new-tokens",
        7,
        "--rounds",
        2,
        "--dtype",
        dtype,
    ]
    found = told(nanogpt, "sample", *SMALL[:-2], "--device", "cpu", *asked)
    assert (
        found["num_samples"],
        found["prompt_tokens"],
        found["max_new_tokens"],
        found["weights"],
    ) == (3, 5, 7, dtype)
    whole_ms = found["prefill_ms"] + 6 * found["ms_per_update"]
    by_parts = 3 * 7 / whole_ms * 1e3
    assert by_parts / 3 < found["tokens_per_second"] < by_parts * 3, "both are medians"


def test_sample_says_what_is_too_long(nanogpt: Run) -> None:
    error = nanogpt("bench", "sample", *SMALL, "--max-new-tokens", 30, code=78).stderr
    assert "8 + 30 tokens are more than the block_size of 32" in error


def test_data(nanogpt: Run, corpus: Path) -> None:
    found = told(nanogpt, "data", "shakespeare-char", "--megabytes", 3, "--updates", 5)
    assert (found["dataset_tokens"], found["batch_tokens"], found["updates"]) == (
        1_500_000,
        64 * 256,
        5,
    )
    assert told(nanogpt, "data", "--dataset", corpus, "--batch-size", 2)["dataset"] == str(corpus)


@pytest.mark.parametrize("ranks", [1, 2])
def test_io(nanogpt: Run, tmp_path: Path, ranks: int) -> None:
    found = told(
        nanogpt,
        "io",
        *SMALL,
        *(["--strategy", "fsdp"] if ranks > 1 else []),
        ranks=ranks if ranks > 1 else 0,
    )
    assert found["bytes"] > 12 * found["parameters"]
    assert found["ranks"] == ranks
    assert min(found["ms_per_update"], found["save_ms"], found["verify_ms"], found["load_ms"]) > 0
    assert list((tmp_path / "out").iterdir()) == [], "all is removed again"
    (tmp_path / "file").write_text("")
    if ranks == 1:
        assert (
            "cannot write in"
            in nanogpt("bench", "io", *SMALL, "--folder", "file/x", code=73).stderr
        )
