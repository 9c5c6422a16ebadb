"""The schedules: the cosine against nanoGPT's formula, the others against what they promise."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.load_config import load
from nanogpt_dist.training.muon import muon_momentum
from nanogpt_dist.training.schedule import (
    cooldown_start,
    decay_end,
    decay_start,
    fallen,
    is_wsd,
    learning_rate,
    rate_falls,
    stable_until,
)


def nanogpt_rate(it: int, lr: float, min_lr: float, warmup: int, decay: int) -> float:
    """The schedule as nanoGPT's train.py states it."""
    if it < warmup:
        return lr * (it + 1) / (warmup + 1)
    if it >= decay:  # at decay the cosine gives it, too, but for the last bit
        return min_lr
    ratio = (it - warmup) / (decay - warmup)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - min_lr)


@given(it=st.integers(0, 3000), warmup=st.integers(0, 500), decay=st.integers(501, 2000))
def test_the_rate_is_nanogpts(it: int, warmup: int, decay: int) -> None:
    config = load("gpt2-124m", {"warmup_iters": warmup, "lr_decay_iters": decay})
    assert learning_rate(it, config) == nanogpt_rate(it, 6e-4, 6e-5, warmup, decay)


def test_the_rate_is_constant_without_decay_and_ends_at_max_iters_by_default() -> None:
    constant = load("gpt2-124m", {"decay_lr": False})
    assert {learning_rate(step, constant) for step in (0, 10, 10**6)} == {6e-4}
    config = load("gpt2-124m", {"max_iters": 100, "warmup_iters": 10})
    assert learning_rate(100, config) == config.min_lr
    assert learning_rate(99, config) > config.min_lr


def test_warm_up_beyond_the_decay_does_not_divide_by_zero() -> None:
    config = load("gpt2-124m", {"max_iters": 5, "warmup_iters": 5})
    assert [learning_rate(step, config) for step in range(7)][-1] == config.min_lr


def test_what_is_the_same_however_many_steps_a_run_makes() -> None:
    for schedule, decays, wsd, falls, stable in (
        ("wsd", True, True, True, 80),
        ("wsd", False, False, False, 100),
        ("cosine", True, False, True, 10),
        ("constant", True, False, False, 100),
    ):
        config = _schedule(schedule, decay_lr=decays, warmup_iters=10, decay_fraction=0.2)
        assert (is_wsd(config), rate_falls(config)) == (wsd, falls), schedule
        assert stable_until(config) == stable
        assert cooldown_start(config) == 100
        for cooldown, until in ((0, stable), (5, min(stable, 95)), (30, min(stable, 70))):
            muon = {"optimizer": "muon", "muon_momentum_cooldown": cooldown}
            config = _schedule(
                schedule, decay_lr=decays, warmup_iters=10, decay_fraction=0.2, **muon
            )
            assert stable_until(config) == until, (schedule, cooldown)
            assert cooldown_start(config) == 100 - cooldown
    long = {"optimizer": "muon", "muon_momentum_cooldown": 150}
    assert stable_until(_schedule("wsd", warmup_iters=10, **long)) == 0


def test_what_has_fallen_ends_at_one_and_begins_at_none() -> None:
    config = _schedule("wsd", warmup_iters=10, decay_fraction=0.2, lr_decay_iters=90)
    assert [fallen(step, config) for step in (0, 72, 81, 90, 95, 100, 200)] == [
        (0.0, 0.0),
        (0.0, 0.0),
        (0.5, 0.0),
        (1.0, 0.0),
        (1.0, 0.0),
        (1.0, 0.0),
        (1.0, 1.0),
    ]
    all_warm_up = _schedule("wsd", warmup_iters=100, decay_fraction=0.2)
    assert fallen(100, all_warm_up)[0] == 0.0
    assert fallen(101, all_warm_up)[0] == 1.0


SCHEDULES = ("cosine", "linear", "wsd", "constant")


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 400),
    fraction=st.floats(0.01, 1),
    least=st.sampled_from((0.0, 1e-4, 1e-3)),
)
def test_every_schedule_rises_stays_and_falls_and_never_leaves_its_bounds(
    schedule: str, warmup: int, steps: int, fraction: float, least: float
) -> None:
    config = _schedule(
        schedule, warmup_iters=warmup, max_iters=steps, decay_fraction=fraction, min_lr=least
    )
    rates = [learning_rate(step, config) for step in range(steps)]
    risen, flat = rates[:warmup], rates[warmup:]
    assert risen == sorted(risen)
    assert flat == sorted(flat, reverse=True)
    assert all(0 <= rate <= 1e-3 for rate in rates)
    assert flat[:1] in ([], [1e-3])
    if schedule == "constant":
        assert set(flat) <= {1e-3}
    elif steps > warmup:
        assert learning_rate(steps, config) == least
        assert (rates[-1] > least) == (least < 1e-3)  # the last step is made at a rate above it


@given(
    warmup=st.integers(0, 50),
    steps=st.integers(1, 400),
    fraction=st.floats(0.01, 1),
    cooldown=st.integers(0, 100),
)
def test_what_has_fallen_is_what_the_rate_and_muons_momentum_lack(
    warmup: int, steps: int, fraction: float, cooldown: int
) -> None:
    config = _schedule(
        "wsd",
        warmup_iters=warmup,
        max_iters=steps,
        decay_fraction=fraction,
        min_lr=0.0,
        optimizer="muon",
        muon_momentum_cooldown=cooldown,
    )
    for step in range(warmup, steps):
        rate, momentum = fallen(step, config)
        assert learning_rate(step, config) == pytest.approx(1e-3 * (1 - rate), abs=1e-12)
        assert muon_momentum(step, config) == pytest.approx(0.95 - 0.1 * momentum)
        if cooldown <= steps:
            assert ((rate, momentum) == (0, 0)) == (step <= stable_until(config))


@given(
    warmup=st.integers(0, 50),
    steps=st.integers(100, 400),
    more=st.integers(0, 400),
    fraction=st.floats(0.01, 0.5),
)
def test_wsd_is_the_constant_schedule_until_its_decay_and_longer_runs_go_on_with_it(
    warmup: int, steps: int, more: int, fraction: float
) -> None:
    values = {"warmup_iters": warmup, "decay_fraction": fraction, "min_lr": 0.0}
    wsd = _schedule("wsd", max_iters=steps, **values)
    longer = _schedule("wsd", max_iters=steps + more, **values)
    constant = _schedule("constant", max_iters=steps, **values)
    start = decay_start(wsd)
    assert start == max(warmup, steps - round(fraction * steps))
    for step in range(start + 1):
        rate = learning_rate(step, wsd)
        assert rate == learning_rate(step, longer) == learning_rate(step, constant)
    falling = [learning_rate(step, wsd) for step in range(start, steps + 1)]
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert falling[-1] == (0.0 if steps > start else 1e-3)


def test_the_decay_is_linear_and_ends_at_lr_decay_iters_where_that_is_given() -> None:
    linear = _schedule("linear", warmup_iters=10, lr_decay_iters=110, max_iters=200, min_lr=0.0)
    assert [learning_rate(step, linear) for step in (9, 10, 35, 60, 110, 199)] == pytest.approx(
        [1e-3 * 10 / 11, 1e-3, 7.5e-4, 5e-4, 0, 0]
    )
    wsd = _schedule("wsd", warmup_iters=10, lr_decay_iters=100, max_iters=200, decay_fraction=0.5)
    assert (decay_start(wsd), decay_end(wsd)) == (50, 100)
    assert [learning_rate(step, wsd) for step in (50, 75, 100)] == pytest.approx(
        [1e-3, (1e-3 + 6e-5) / 2, 6e-5]
    )


def test_wsd_over_all_steps_is_the_linear_schedule() -> None:
    values = {"warmup_iters": 7, "max_iters": 50, "min_lr": 1e-5}
    wsd, linear = _schedule("wsd", decay_fraction=1, **values), _schedule("linear", **values)
    assert [learning_rate(i, wsd) for i in range(60)] == [
        learning_rate(i, linear) for i in range(60)
    ]


def test_no_decay_lr_is_constant_from_the_first_step_whatever_the_schedule() -> None:
    for schedule in SCHEDULES:
        config = _schedule(schedule, decay_lr=False, warmup_iters=10)
        assert {learning_rate(step, config) for step in range(30)} == {1e-3}


def _schedule(schedule: str, **settings: object) -> TrainConfig:
    given = {"schedule": schedule, "learning_rate": 1e-3, "max_iters": 100, **settings}
    return load("gpt2-124m", given)
