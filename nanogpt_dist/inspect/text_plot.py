"""Curves as text: in braille, whose cells have 2 × 4 dots, or in ASCII. No torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDE, HIGH = 2, 4  # dots of a cell
BRAILLE = 0x2800
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of the dots of a cell
DOT, LINE = "●", "*"  # of a point; of a curve in ASCII
SKIPPED = 0.05  # of the x axis: what comes first may lie above the plot


def plot_lines(
    x: Floats,
    y: Floats,
    width: int,
    height: int,
    points: Sequence[tuple[float, float]] = (),
    plain: bool = False,
) -> list[str]:
    """A curve through (x, y), (n,) each, and single points on top: `height` lines of `width`.

    The lowest and the highest y of what is shown stand at the left. A curve that begins far above
    the rest, as a loss does, is cut at its top. plain: ASCII only. [] where there is nothing.
    """
    every = np.concatenate([np.stack([x, y]), np.array(points).reshape(-1, 2).T], axis=1)
    every = every[:, np.isfinite(every).all(axis=0)]
    if not every.shape[1]:
        return []
    left, right = float(every[0].min()), float(every[0].max())
    shown = every[1][every[0] >= left + SKIPPED * (right - left)]
    low, high = float(shown.min()), float(shown.max())
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"][:height]
    margin = max(map(len, labels)) + 1
    cells = max(1, width - margin)
    grid = np.zeros((height * HIGH, cells * WIDE), dtype=bool)
    across = _scaled(every[0], left, right, grid.shape[1])
    down = grid.shape[0] - 1 - _scaled(every[1], low, high, grid.shape[0])
    count = every.shape[1] - len(points)
    _draw(grid, across[:count], down[:count])
    text = [list(line) for line in (_ascii(grid) if plain else _braille(grid))]
    for column, row in zip(across[count:], down[count:], strict=True):
        text[row // HIGH][column // WIDE] = "o" if plain else DOT
    return [
        f"{label:>{margin - 1}} {''.join(line)}" for label, line in zip(labels, text, strict=True)
    ]


def _scaled(values: Floats, low: float, high: float, dots: int) -> NDArray[np.int64]:
    """Which of so many dots each value is at."""
    span = high / 2 - low / 2  # halves: the difference of two floats may be none
    with np.errstate(over="ignore"):  # far outside
        share = (values / 2 - low / 2) / span if span > 0 else np.full_like(values, 0.5)
        return np.clip(np.round(share * (dots - 1)), 0, dots - 1).astype(np.int64)


def _draw(grid: NDArray[np.bool_], across: NDArray[np.int64], down: NDArray[np.int64]) -> None:
    """Set the dots of a curve: of each column the mean, on a line between those that have one."""
    if not len(across):
        return
    known = np.unique(across)
    means = [down[across == column].mean() for column in known]
    columns = np.arange(known[0], known[-1] + 1)
    rows = np.round(np.interp(columns, known, means)).astype(np.int64)
    for column, row, before in zip(columns, rows, [rows[0], *rows], strict=False):
        grid[min(row, before) : max(row, before) + 1, column] = True


def _blocks(grid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(4·rows, 2·columns) → (rows, columns, 4, 2): the dots of each cell."""
    rows, columns = grid.shape[0] // HIGH, grid.shape[1] // WIDE
    return grid.reshape(rows, HIGH, columns, WIDE).transpose(0, 2, 1, 3)


def _braille(grid: NDArray[np.bool_]) -> list[str]:
    codes = (_blocks(grid) * BITS).sum(axis=(2, 3))
    return ["".join(chr(BRAILLE + code) if code else " " for code in row) for row in codes.tolist()]


def _ascii(grid: NDArray[np.bool_]) -> list[str]:
    dots = _blocks(grid).sum(axis=(2, 3))
    return ["".join(LINE if count else " " for count in row) for row in dots.tolist()]
