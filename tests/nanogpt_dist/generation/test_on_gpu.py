"""Sampling on a GPU, on the fake one: CUDA graphs, and what waits for the device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import CLONE

# A token's ids go down once; the numbers that draw the next ones go up, pinned.
ONE_READ = ["up copy_", "sync event.synchronize"]


@pytest.fixture(scope="module")
def found(fake_gpu: Callable[..., dict[str, str]]) -> dict[str, Any]:
    """What on_gpu.py prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.nanogpt_dist.generation.on_gpu"],
        capture_output=True,
        text=True,
        cwd=CLONE,
        env={**os.environ, **fake_gpu()},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_graphs_give_the_ids_of_single_kernels_and_of_the_cpu(found: dict[str, Any]) -> None:
    assert len(found["same"]) == 16
    assert [case for case, same in found["same"].items() if not same] == []


def test_each_length_of_the_cache_has_a_graph(found: dict[str, Any]) -> None:
    # 200 tokens of prompt, 390 new ones: the last is not read
    assert found["lengths"] == {"256": 56, "512": 256, "600": 77}


@pytest.mark.parametrize("what", ["reads", "reads without graphs"])
def test_a_token_waits_for_the_device_once(found: dict[str, Any], what: str) -> None:
    assert found[what] == [ONE_READ] * 3


def test_int8_weights_are_numbers_to_multiply_with_once_and_for_all(found: dict[str, Any]) -> None:
    assert found["int8"] == {"casts": 0, "format": "int8, held in bfloat16", "bytes": 2}


def test_a_decoders_memory_is_free_when_nobody_has_it(found: dict[str, Any]) -> None:
    assert found["freed"] is True


def test_weights_that_diverged_are_told_with_the_first_token(found: dict[str, Any]) -> None:
    assert found["diverged"] is True
