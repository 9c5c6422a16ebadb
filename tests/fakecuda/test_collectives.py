"""NCCL's part on the fake GPU: sums between two processes, and what is left when one dies."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import CLONE
from tests.fakecuda.record import read

FakeGpu = Callable[..., dict[str, str]]


def in_two(what: str, environment: dict[str, str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.fakecuda.two_ranks", what],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=CLONE,
                env={**os.environ, **environment, **variables},
            )
        )
    words = [process.communicate(timeout=60) for process in started]
    return [(p.returncode, *each) for p, each in zip(started, words, strict=True)]


def test_what_training_asks_for(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    for code, _, stderr in in_two("sums", fake_gpu(record=tmp_path / "record")):
        assert code == 0, stderr
    names = [each.what for each in read(tmp_path / "record") if each.kind == "collective"]
    assert "c10d::_reduce_scatter_base_" in names
    assert "c10d::_allgather_base_" in names


def test_a_rank_that_dies_is_no_error_for_the_others(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    """Their events are not reached, and a read waits until the watchdog ends the process."""
    left, died = in_two("dies", fake_gpu(record=tmp_path / "record"))
    assert died[0] == 3
    assert left[0] == -6, left  # SIGABRT
    assert left[1] == "waiting\n"
    assert "Watchdog caught collective operation timeout" in left[2]
    assert "stuck" in {each.kind for each in read(tmp_path / "record")}
