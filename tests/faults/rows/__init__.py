"""The rows of docs/faults.md, by what they disturb."""

from tests.faults.row import Row
from tests.faults.rows import (
    checkpoints,
    disks,
    foreign,
    hangs,
    hub,
    kills,
    malice,
    results,
    saves,
    shards,
    stops,
    text,
    vocabularies,
    workers,
)

MODULES = (
    *(kills, stops, hangs, results, saves, disks, checkpoints),
    *(shards, vocabularies, text, workers, hub, malice, foreign),
)
ROWS: list[Row] = sorted(
    (row for module in MODULES for row in module.ROWS), key=lambda row: row.number
)
