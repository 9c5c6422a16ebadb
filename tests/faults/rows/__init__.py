"""The rows of docs/faults.md, by what they disturb."""

from tests.faults.row import Row
from tests.faults.rows import kills

ROWS: list[Row] = sorted([*kills.ROWS], key=lambda row: row.number)
