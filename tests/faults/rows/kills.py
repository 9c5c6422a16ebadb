"""Processes that are killed: of a preparation, of a training, in a save, one of several ranks."""

import json
import random
from pathlib import Path

from nanogpt_dist import storage
from tests.faults import commands, prepared
from tests.faults.row import Row


def tensors(run: Path, step: int) -> dict[str, str]:
    """The sha256 of the files of weights and moments of one checkpoint."""
    path = run / "checkpoints" / storage.step_name(step)
    entries = json.loads((path / "manifest.json").read_text())["files"]
    return {
        entry["name"]: entry["sha256"]
        for entry in entries
        if entry["name"].endswith(".safetensors")
    }


def train_killed(choose: random.Random, folder: Path) -> None:
    """Kill both ranks of a training at a random moment, let it go on, compare the end."""
    import time

    whole = prepared.trained_by_two()
    (folder / "data").symlink_to(whole / "data")
    line = ["train", "--dataset", "data", "--out-dir", "out", *prepared.STEPS_24]
    started = commands.start(*line, folder=folder, ranks=2)
    deadline = time.monotonic() + choose.uniform(0.0, 2.5)
    while time.monotonic() < deadline and not started.poll():
        time.sleep(0.002)
    started.kill()
    commands.run(*line, folder=folder, ranks=2)
    assert tensors(folder / "out", 24) == tensors(whole / "out", 24), "the end is another"


ROWS = [
    Row(
        number=2,
        fault="SIGKILL anywhere in `train`, 2 ranks",
        holds="the run goes on from its newest checkpoint and ends with the same bits",
        goal=200,
        attempt=train_killed,
        short=3,
    ),
]
