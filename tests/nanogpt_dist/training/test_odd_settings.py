"""What nobody means by their settings is told before a run."""

import pytest

from nanogpt_dist.config import resolve
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.training.odd_settings import odd_settings


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
        ({"warmup_iters": 1, "max_iters": 6, "lr_decay_iters": 7}, 1, "never decays to its end"),
        (
            {"warmup_iters": 1, "max_iters": 6, "lr_decay_iters": 5, "min_lr": 0.0},
            1,
            "the last 1 steps learn nothing",
        ),
        (
            {"muon_steps": 3, "muon_momentum": 0.9},
            1,
            "nothing reads muon_momentum, muon_steps without --optimizer muon",
        ),
        ({"decay_fraction": 0.5}, 1, "nothing reads decay_fraction without --schedule wsd"),
        ({"head_learning_rate": 0.5}, 1, "nothing reads head_learning_rate without --no-tied-head"),
        ({"rotary_base": 200.0}, 1, "nothing reads rotary_base without --rotary"),
    ],
)
def test_what_nobody_means_and_nothing_reads_is_told(
    settings: dict[str, object],
    epochs: float,
    word: str,
) -> None:
    (line,) = odd_settings(resolve(settings), epochs)
    assert word in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_iters": 2000, "max_iters": 6, "decay_lr": False},
        {"warmup_iters": 3, "max_iters": 6},
        {"warmup_iters": 6, "lr_decay_iters": 3, "max_iters": 8, "schedule": "constant"},
        {"warmup_iters": 3, "max_iters": 6, "batch_ramp": "0:4,5:8"},
        {"warmup_iters": 1, "max_iters": 6, "lr_decay_iters": 5, "min_lr": 0.0}
        | {"schedule": "constant"},
        {"optimizer": "muon", "muon_steps": 3, "schedule": "wsd", "decay_fraction": 0.5},
    ],
)
def test_of_usual_settings_nothing_is_told(settings: dict[str, object]) -> None:
    assert odd_settings(resolve(settings), 30) == []


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_has_odd_settings(name: str) -> None:
    assert odd_settings(resolve(PRESETS[name]), 1) == []
