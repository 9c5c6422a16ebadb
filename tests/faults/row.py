"""What a row of the campaign is: a fault, what has to hold, and how one try injects it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Injects one fault, or Row.each of them: all its choices come from the generator, all its files are
# in the empty folder. Returns the seconds that matter here (until a hang was seen, say), or None
# for those that the try took. Raises AssertionError, with what was lost, where the row does not
# hold.
Try = Callable[[random.Random, Path], float | None]


class Missing(Exception):
    """This machine lacks what the row needs: root, strace, …"""


@dataclass(frozen=True)
class Row:
    """One kind of fault.

    number: in docs/faults.md. fault: what happens. holds: what must be true afterwards. goal:
    faults without a loss. attempt: one try; None where tests alone show the row. short: tries in
    the short tier, which `make test` runs. each: faults that a try injects, one after the other.
    limit_s: after which a try has hung. tests: pytest ids that are this row too; each test that
    passes is a fault.
    """

    number: int
    fault: str
    holds: str
    goal: int
    attempt: Try | None = None
    short: int = 0
    each: int = 1
    limit_s: float = 120
    tests: Sequence[str] = ()
