"""How a training of two ranks ends where one of them fails on its GPU, or dies: NCCL waits for it
for ever.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch import verdict
from tests.nanogpt_dist.distributed.test_leaving import FAULTS, assert_told, end_of


@pytest.mark.parametrize(("fault", "code", "says"), FAULTS)
def test_a_rank_that_fails_says_so_first(
    fault: str,
    code: int,
    says: str,
    corpus: Path,
    fake_gpu: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    told = end_of(fault, corpus, tmp_path, **fake_gpu(count=2))
    assert_told(told, tmp_path, code, says)


def test_a_rank_that_is_killed_is_named(
    corpus: Path,
    fake_gpu: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    told = end_of("killed", corpus, tmp_path, **fake_gpu(count=2))
    assert len(told) == 1, told
    assert told[0].startswith("nanogpt: error: lost rank 1 (pid "), told
    assert "which has died, after step" in told[0], told
    left = verdict.read(tmp_path / "verdict.json")
    assert left is not None
    assert (left.code, left.rank) == (74, 0)
