"""Evaluation on a GPU, on the fake one: the CPU's figures, with one question to the device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from tests.conftest import CLONE


def test_loss_and_scores_ask_the_device_once_at_the_end(
    fake_gpu: Callable[..., dict[str, str]],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.nanogpt_dist.evaluation.on_gpu"],
        capture_output=True,
        text=True,
        cwd=CLONE,
        env={**os.environ, **fake_gpu()},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["numbers"] == 21
    assert found["farthest"] < 1e-4
    # 4 batches and 5, each with a copy to the device that nobody waits for; then one event, which
    # is asked until it is reached: a rank that has died is named meanwhile
    assert found["waited"] == {"loss": ["query"] * 2, "scores": ["query"] * 2}
