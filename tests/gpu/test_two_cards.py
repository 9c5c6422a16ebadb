"""Two GPUs of one machine: how a training ends where one rank dies or has no memory left."""

import time
from pathlib import Path

import pytest
import torch

from launch import verdict
from tests.gpu.conftest import Measured
from tests.nanogpt_dist.distributed.test_leaving import assert_told, end_of

LIMIT_S = 60


@pytest.fixture(autouse=True)
def two_cards() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU is here, this needs two")


def test_a_rank_that_is_killed_is_named(corpus: Path, tmp_path: Path, measured: Measured) -> None:
    begun = time.monotonic()
    told = end_of("killed", corpus, tmp_path)
    measured.at_most(LIMIT_S, seconds=time.monotonic() - begun)
    assert told[0].startswith("nanogpt: error: lost rank 1 (pid "), told
    assert "which has died, after step" in told[0], told
    left = verdict.read(tmp_path / "verdict.json")
    assert left is not None
    assert (left.code, left.rank) == (74, 0)


def test_a_rank_without_memory_says_so(corpus: Path, tmp_path: Path, measured: Measured) -> None:
    begun = time.monotonic()
    told = end_of("memory", corpus, tmp_path)
    measured.at_most(LIMIT_S, seconds=time.monotonic() - begun)
    assert_told(told, tmp_path, 70, "out of memory; lower --batch-size")
