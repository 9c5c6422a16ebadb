"""Who is a straggler, and when it is told of."""

from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.training.stragglers import (
    SLOWER,
    WINDOW_S,
    WINDOWS,
    Slowest,
    Stragglers,
    slowest_of,
)

EQUAL, SLOW = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.5, 1.0]


def told(intervals: list[list[float]], seconds: float = WINDOW_S) -> list[int]:
    """The numbers of the intervals in which a straggler is told of."""
    stragglers = Stragglers()
    return [i for i, own in enumerate(intervals) if stragglers.add(seconds, own) is not None]


def test_the_slowest_is_held_against_the_median_of_the_others() -> None:
    assert slowest_of([1.0, 2.0]) == Slowest(1, 2.0)
    assert slowest_of([1.0, 4.0, 2.0, 8.0]) == Slowest(3, 4.0)
    for unknown in ([1.0], [], [0.0, 1.0]):
        assert slowest_of(unknown) is None


def test_a_straggler_is_told_of_once_an_episode() -> None:
    assert told([SLOW] * 10) == [WINDOWS - 1]
    assert told([SLOW] * 4 + [EQUAL] + [SLOW] * 4) == [2, 7]
    assert told([SLOW] * 2 + [EQUAL] + [SLOW] * 2) == []
    assert told([SLOW] * 3, seconds=WINDOW_S / 2.5) == []  # one window, as yet
    assert told([SLOW] * 9, seconds=WINDOW_S / 2.5) == [8]


def test_ranks_that_are_slow_in_turn_are_no_stragglers() -> None:
    assert told([[1.0, 1.5], [1.5, 1.0]] * 10) == []
    assert told([[0.0, 0.0]] * 10) == []  # unknown, as in the first steps


@given(st.lists(st.lists(st.floats(1.0, SLOWER), min_size=4, max_size=4), max_size=30))
def test_ranks_that_are_nearly_equal_are_never_told_of(intervals: list[list[float]]) -> None:
    assert told(intervals) == []
