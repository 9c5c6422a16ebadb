"""The fit finds the law by which losses were made, says how sure it is, and predicts another."""

import numpy as np
import pytest

from nanogpt_dist.errors import ConfigError
from nanogpt_dist.ladder import scaling_law
from nanogpt_dist.ladder.scaling_law import Law, fit, interval, separates

CHINCHILLA = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)  # Hoffmann et al., appendix D.3
SIZES = np.array([1e6, 3e6, 1e7, 3e7, 1e8, 3e8])
NOISE = 0.005  # standard deviation of the log loss
SEEDS = range(5)


def grid() -> tuple[np.ndarray, np.ndarray]:
    n, ratio = (each.ravel() for each in np.meshgrid(SIZES, [5.0, 10.0, 20.0, 40.0]))
    return n, n * ratio


@pytest.mark.parametrize("law", [CHINCHILLA, Law(0.9, 20.0, 0.2, 2000.0, 0.45)], ids=str)
def test_without_noise_the_law_is_found_to_its_digits(law: Law) -> None:
    n, d = grid()
    found = fit(n, d, law(n, d)).law
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_noise_exponents_are_within_0_03_and_a_larger_run_within_1_percent(seed: int) -> None:
    n, d = grid()
    noise = np.exp(np.random.default_rng(seed).normal(0, NOISE, len(n)))
    made = fit(n, d, CHINCHILLA(n, d) * noise)
    assert made.law.alpha == pytest.approx(CHINCHILLA.alpha, abs=0.03)
    assert made.law.beta == pytest.approx(CHINCHILLA.beta, abs=0.03)
    held_out = 3e9, 6e10  # ten times the largest, and not on the grid
    value, low, high = made.predict(*held_out)
    assert value == pytest.approx(float(CHINCHILLA(*held_out)), rel=0.01)
    assert low is not None
    assert high is not None
    assert low < value < high < 1.05 * low


@pytest.mark.thorough
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 20 seeds, 90 % on average; with as few as 12 something is wrong."""
    n, d = grid()
    held = 0
    for seed in range(20):
        noise = np.exp(np.random.default_rng(100 + seed).normal(0, NOISE, len(n)))
        low, high = interval([law.alpha for law in fit(n, d, CHINCHILLA(n, d) * noise).resampled])
        assert low is not None
        assert high is not None
        held += low <= CHINCHILLA.alpha <= high
    assert held >= 12


def test_an_outlier_moves_it_little() -> None:
    n, d = grid()
    loss = CHINCHILLA(n, d)
    loss[3] *= 1.2
    assert fit(n, d, loss).law.alpha == pytest.approx(CHINCHILLA.alpha, abs=0.005)


@pytest.mark.parametrize("ratio", [None, 20.0], ids=["equal tokens", "tokens go with N"])
def test_one_number_of_tokens_for_each_size_gives_a_law_in_n_alone(ratio: float | None) -> None:
    law = Law(E=1.7, A=300.0, alpha=0.3)
    n = SIZES[:4]
    d = np.full(4, 1e9) if ratio is None else ratio * n
    made = fit(n, d, law(n))
    assert not made.in_tokens
    assert made.law.alpha == pytest.approx(law.alpha, rel=1e-4)
    assert made.predict(1e9, 1.0)[0] == pytest.approx(float(law(1e9)), rel=1e-4)
    assert made.tokens_for(1e9) == pytest.approx(1e9 if ratio is None else 2e10, rel=1e-6)


def test_three_sizes_have_no_interval_and_two_are_too_few() -> None:
    law = Law(E=1.7, A=300.0, alpha=0.3)
    made = fit(SIZES[:3], SIZES[:3], law(SIZES[:3]))
    assert made.resampled == ()
    assert made.predict(1e9, 1e9)[1:] == (None, None)
    with pytest.raises(ConfigError, match="here are 2; give more to --sizes"):
        fit(SIZES[:2], SIZES[:2], law(SIZES[:2]))


def test_tokens_count_by_themselves_only_where_they_vary_beside_n() -> None:
    n, d = grid()
    assert separates(n, d)
    assert not separates(n, 20 * n)
    assert not separates(n[:5], d[:5])
    rounded = np.ceil(20 * n / 4096) * 4096  # whole steps
    assert not separates(n, rounded)


def test_the_same_data_give_the_same_fit() -> None:
    n, d = grid()
    loss = CHINCHILLA(n, d) * np.exp(np.random.default_rng(1).normal(0, NOISE, len(n)))
    assert fit(n, d, loss) == fit(n, d, loss)
    assert len(fit(n, d, loss).resampled) == scaling_law.RESAMPLES


def test_the_best_use_of_flops_is_a_minimum() -> None:
    flops = 1e21
    n, d = CHINCHILLA.best_for(flops)
    assert 6 * n * d == pytest.approx(flops)
    best = float(CHINCHILLA(n, d))
    assert best < CHINCHILLA(1.1 * n, d / 1.1)
    assert best < CHINCHILLA(n / 1.1, 1.1 * d)
