"""What a training is expected to take, beside what the fake GPU has given out at most."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt_dist.config import resolve
from nanogpt_dist.distributed.layout import Memory, Site, choose_layout
from tests.fakecuda.runs import TRAIN
from tests.fork_server import Done

CARD = Memory(80 * 10**9, None, 1, "cuda")
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "vocab_size": 2048}
CASES = [
    ("single", "none", 1, 2),
    ("ddp", "none", 2, 4),
    ("fsdp", "full", 2, 4),
    pytest.param("single", "selective", 1, 1, marks=pytest.mark.thorough),
    pytest.param("single", "full", 1, 2, marks=pytest.mark.thorough),
    pytest.param("ddp", "full", 2, 2, marks=pytest.mark.thorough),
    pytest.param("fsdp", "none", 2, 2, marks=pytest.mark.thorough),
    pytest.param("fsdp", "selective", 2, 4, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize(("strategy", "mode", "ranks", "accumulation"), CASES)
def test_the_peak_of_a_training_is_the_expected_one(
    gpu: Callable[..., Done],
    strategy: str,
    mode: str,
    ranks: int,
    accumulation: int,
) -> None:
    """Eager, whose buffers are those of the operations; less what a real GPU takes for itself."""
    settings = {
        **SHAPE,
        "batch_size": 8,
        "gradient_accumulation_steps": accumulation,
        "strategy": strategy,
        "activation_checkpointing": mode,
        "join_micro_batches": False,
        "compile": False,
    }
    flags = [f"--{name.replace('_', '-')}" for name in settings]
    values = [[flag, value] for flag, value in zip(flags, settings.values(), strict=True)]
    line = [
        word
        for flag, value in values
        for word in ([f"--no-{flag[2:]}"] if value is False else [flag, value])
    ]
    line += ["--device", "cuda", "--dtype", "bfloat16", "--updates", 3, "--json"]
    done = gpu("bench", "train", *line, ranks=ranks)
    measured = json.loads(done.stdout)["memory_bytes"]
    usage = choose_layout(Site(resolve(settings), CARD, ranks, torch.bfloat16, 16)).usage
    assert usage is not None
    assert usage.peak - usage.allowance == pytest.approx(measured, rel=0.03)


@pytest.mark.thorough
def test_a_compiled_backward_pass_gives_all_gradients_at_its_end(gpu: Callable[..., Done]) -> None:
    """Where activations are few these are most: 12 bytes a parameter, 4 held, and 4 that come."""
    shape = {**SHAPE, "n_layer": 8, "n_embd": 256, "block_size": 32, "vocab_size": 64}
    line = [
        word for name, value in shape.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    line += ["--batch-size", 1, "--gradient-accumulation-steps", 2, "--no-join-micro-batches"]
    line += ["--activation-checkpointing", "none", "--dtype", "bfloat16", "--device", "cuda"]
    done = gpu("bench", "train", *line, "--compile", "--updates", 3, "--json", compile="aot_eager")
    found = json.loads(done.stdout)
    assert found["memory_bytes"] == pytest.approx(20 * found["parameters"], rel=0.02)
    batch = {"batch_size": 1, "gradient_accumulation_steps": 2, "join_micro_batches": False}
    config = resolve({**shape, **batch, "activation_checkpointing": "none", "compile": True})
    usage = choose_layout(Site(config, CARD, 1, torch.bfloat16, 16)).usage
    assert usage is not None
    assert usage.peak - usage.allowance == pytest.approx(found["memory_bytes"], rel=0.02)


def test_a_run_says_what_was_chosen(gpu: Callable[..., Done], corpus: Path) -> None:
    """Eight sequences a step are one micro-batch, where memory is no matter, or as they are cut."""
    line = [*TRAIN, "--dataset", corpus, "--device", "cuda", "--max-iters", 1, "--no-compile"]
    joined = gpu(*line, "--join-micro-batches", "--out-dir", "joined")
    assert "= 1 rank × 1 micro-batch × 8 sequences × 32" in joined.stdout + joined.stderr
    (said,) = [line for line in (joined.stdout + joined.stderr).splitlines() if "memory:" in line]
    assert "of 80.0 GB on each GPU" in said
    assert said.endswith("activation checkpointing: none")
    cut = gpu(*line, "--activation-checkpointing", "full", "--out-dir", "cut")
    assert "× 4 micro-batches × 2 sequences" in cut.stdout + cut.stderr
    assert "activation checkpointing: full" in cut.stdout + cut.stderr
