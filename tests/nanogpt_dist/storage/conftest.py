"""A sealed folder for the tests of storage/."""

import random
from pathlib import Path

import pytest

from nanogpt_dist import storage

FILES = {
    "model.safetensors": random.Random(1).randbytes(3000),
    "state.json": b'{"step": 7}',
    "empty": b"",
}


def fill(staging: Path) -> None:
    for name, data in FILES.items():
        (staging / name).write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return storage.commit(tmp_path, "step-00000007", fill, {"step": 7, "loss": 1.5})
