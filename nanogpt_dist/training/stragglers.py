"""A straggler: a rank that takes longer for its own work than the others, for whom they wait."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SLOWER = 1.2  # times as long as the others, from where on a rank is named
WINDOW_S = 5.0  # seconds of logged steps that are judged together, at least
WINDOWS = 3  # in a row in which the same rank is slower


@dataclass(frozen=True)
class Slowest:
    """The slowest rank, and how many times longer than the median of the others it works."""

    rank: int
    factor: float


def slowest_of(own: Sequence[float]) -> Slowest | None:
    """The slowest of ranks whose own work took `own` seconds; None for one, or where unknown."""
    if len(own) < 2 or min(own) <= 0:
        return None
    rank = max(range(len(own)), key=own.__getitem__)
    others = [seconds for other, seconds in enumerate(own) if other != rank]
    return Slowest(rank, own[rank] / statistics.median(others))


class Stragglers:
    """Tells of a straggler once an episode, which ends where that rank is as fast as the others."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._own: list[float] = []
        self._rank: int | None = None  # slower in `_windows` windows in a row
        self._windows = 0

    def add(self, seconds: float, own: Sequence[float]) -> Slowest | None:
        """Take an interval of `seconds` and each rank's own work in it; a straggler to tell of."""
        if not own or min(own) <= 0:
            return None
        self._own = [a + b for a, b in zip(self._own or [0.0] * len(own), own, strict=True)]
        self._seconds += seconds
        if self._seconds < WINDOW_S:
            return None
        found, self._own, self._seconds = slowest_of(self._own), [], 0.0
        if found is None or found.factor <= SLOWER:
            self._rank, self._windows = None, 0
            return None
        self._windows = self._windows + 1 if found.rank == self._rank else 1
        self._rank = found.rank
        return found if self._windows == WINDOWS else None
