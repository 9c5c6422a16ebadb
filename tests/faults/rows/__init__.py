"""The rows of docs/faults.md, by what they disturb."""

from tests.faults.row import Row
from tests.faults.rows import hangs, kills, results, stops

ROWS: list[Row] = sorted(
    [*kills.ROWS, *hangs.ROWS, *stops.ROWS, *results.ROWS], key=lambda row: row.number
)
