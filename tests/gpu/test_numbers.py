"""The GPU's numbers beside the CPU's, and compiled beside eager: losses of a training."""

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.gpu.conftest import Measured
from tests.gpu.runs import STRATEGIES, largest_difference, losses, train, train_flags

STEPS = 20
SHORT = {"block_size": 64, "max_iters": STEPS}  # the CPU's part takes a thread seconds


def test_float32_losses_are_the_cpus(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    exact = {**SHORT, "dtype": "float32", "compile": False}
    cpu, gpu = (
        train(nanogpt, corpus, tmp_path / device, **exact, device=device)
        for device in ("cpu", "cuda")
    )
    assert len(gpu) == STEPS
    assert gpu[0] - gpu[-1] > 0.1, "it learns"
    measured.note(losses=gpu)
    measured.at_most(1e-4, difference=largest_difference(cpu, gpu))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_compiled_losses_are_the_eager_ones(
    dtype: str,
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    eager, compiled = (
        train(nanogpt, corpus, tmp_path / str(each), dtype=dtype, compile=each, max_iters=STEPS)
        for each in (False, True)
    )
    measured.note(eager=eager, compiled=compiled)
    limit = 1e-3 if dtype == "float32" else 0.02
    measured.at_most(limit, difference=largest_difference(eager, compiled))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_strategy_computes_the_same(
    dtype: str,
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    """In bf16 fsdp rounds the residual stream, which autocast leaves in float32."""
    single, *others = (
        train(nanogpt, corpus, tmp_path / each, dtype=dtype, strategy=each, max_iters=STEPS)
        for each in STRATEGIES
    )
    ddp, fsdp = (largest_difference(single, other) for other in others)
    measured.at_most(1e-3, ddp=ddp)
    measured.at_most(1e-3 if dtype == "float32" else 0.02, fsdp=fsdp)


def test_every_strategy_resumes_the_others_checkpoints(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    """Four steps of one and four of another are eight of the first."""
    common = {"dtype": "float32", "compile": False, "save_interval": 4, "max_iters": 8}
    whole = {
        each: train(nanogpt, corpus, tmp_path / each, strategy=each, **common)
        for each in STRATEGIES
    }
    for first in STRATEGIES:
        checkpoint = tmp_path / first / "checkpoints" / "step-00000004"
        for then in STRATEGIES:
            if then != first:
                run = tmp_path / f"{first}-{then}"
                line = train_flags(corpus, run, strategy=then, **common)
                nanogpt("train", checkpoint, *line[1:])
                measured.at_most(
                    1e-3, **{f"{first} → {then}": largest_difference(whole[first][4:], losses(run))}
                )
