"""What a run says before its first step."""

import pytest

from nanogpt_dist.config import resolve
from nanogpt_dist.training.summary import counted, schedule_warnings


@pytest.mark.parametrize(
    ("settings", "epochs", "word"),
    [
        ({"warmup_iters": 2000, "max_iters": 6}, 1, "never reaches learning_rate 0.0006"),
        (
            {"warmup_iters": 6, "lr_decay_iters": 3, "max_iters": 8},
            1,
            "falls from learning_rate to min_lr at once",
        ),
        ({"max_iters": 6, "warmup_iters": 1}, 1_000_000, "1,000,000 epochs"),
        (
            {"max_iters": 6, "warmup_iters": 1, "batch_ramp": "0:4,6:8"},
            1,
            "its ramp ends at step 6: it never gets there",
        ),
    ],
)
def test_a_schedule_that_nobody_means_is_told(
    settings: dict[str, object],
    epochs: float,
    word: str,
) -> None:
    (line,) = schedule_warnings(resolve(settings), epochs)
    assert word in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_iters": 2000, "max_iters": 6, "decay_lr": False},
        {"warmup_iters": 3, "max_iters": 6},
        {"warmup_iters": 6, "lr_decay_iters": 3, "max_iters": 8, "schedule": "constant"},
        {"warmup_iters": 3, "max_iters": 6, "batch_ramp": "0:4,5:8"},
    ],
)
def test_of_a_usual_schedule_nothing_is_told(settings: dict[str, object]) -> None:
    assert schedule_warnings(resolve(settings), 30) == []


def test_one_of_a_thing_is_no_plural() -> None:
    assert (counted(1, "rank"), counted(2, "rank")) == ("1 rank", "2 ranks")
    assert counted(1000, "micro-batch", "es") == "1,000 micro-batches"
