"""What is told of a law, and what is not: the best use of FLOPs, exponents that nothing fixes."""

import numpy as np
import pytest

from nanogpt_dist.ladder.reading import NEAR, Reading, best_use, undetermined
from nanogpt_dist.ladder.scaling_law import BOUNDS, Fit, Law

LAW = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
N, D = np.array([1e8, 2e8, 4e8]), np.array([2e9, 4e9, 8e9])


def reading(law: Law, n: np.ndarray = N) -> Reading:
    return Reading((), n, D, law(n, D), Fit(law, (), (0.0, 1.0)), False)


def test_the_best_use_of_the_largest_runs_flops_is_told_near_the_fitted_sizes_alone() -> None:
    use = best_use(reading(LAW))
    assert use is not None
    assert use.flops == 6 * 4e8 * 8e9
    assert (use.parameters, use.tokens) == LAW.best_for(use.flops)
    assert N.min() / NEAR < use.parameters < N.max() * NEAR
    assert best_use(reading(LAW, N / 1e5)) is None


@pytest.mark.parametrize(
    "law",
    [Law(1.0, 1e12, 0.01, 1.0, 0.01), Law(1.0, 1.0, 0.3, 0.0, 0.3), Law(1.0, 0.0, 0.3, 1.0, 0.3)],
    ids=str,
)
def test_a_law_whose_best_use_is_no_number_has_none(law: Law) -> None:
    assert best_use(reading(law)) is None


def test_exponents_at_the_end_of_what_is_searched_are_not_determined() -> None:
    least, most = (float(each) for each in np.exp(BOUNDS))
    assert undetermined(LAW) == []
    assert undetermined(Law(1.0, 1.0, least)) == ["alpha"]
    assert undetermined(Law(1.0, 1.0, most, 1.0, 0.3)) == ["alpha"]
    assert undetermined(Law(1.0, 1.0, least, 1.0, most)) == ["alpha", "beta"]
