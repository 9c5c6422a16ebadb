"""How many sequences each step reads and how long they are, where that changes during a run.

Everything here is a closed form of the step: no state, no scan over steps.
"""

import functools
import itertools
import math
import re
from dataclasses import dataclass

# STEP:SIZE,…, the first step 0
RAMP = re.compile(r"0:[1-9][0-9]{0,8}(,[1-9][0-9]{0,11}:[1-9][0-9]{0,8})*")


@dataclass(frozen=True)
class Piece:
    """Steps from `first` on that read `sequences` sequences, over all ranks, of `length` tokens."""

    first: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.sequences * self.length


@dataclass(frozen=True)
class Ramp:
    """The pieces of a run, which follow each other from step 0 on; the last one has no end."""

    pieces: tuple[Piece, ...]

    def at(self, step: int) -> Piece:
        """The piece of step number `step` (from 0)."""
        return next(piece for piece in reversed(self.pieces) if piece.first <= step)

    def begins_at(self, step: int) -> bool:
        """Whether a piece begins with step number `step` (from 0)."""
        return self.at(step).first == step

    def sequences_before(self, step: int, length: int) -> int:
        """Sequences of `length` tokens in the first `step` steps."""
        return sum(
            count * piece.sequences
            for piece, count in self._steps_before(step)
            if piece.length == length
        )

    def tokens_before(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        return sum(count * piece.tokens for piece, count in self._steps_before(step))

    def steps_of(self, tokens: float) -> int:
        """The fewest steps that have `tokens` tokens or more."""
        piece = next(
            piece for piece in reversed(self.pieces) if self.tokens_before(piece.first) <= tokens
        )
        return piece.first + math.ceil((tokens - self.tokens_before(piece.first)) / piece.tokens)

    def _steps_before(self, step: int) -> list[tuple[Piece, int]]:
        """Each piece with its steps among the first `step`."""
        ends = [*(piece.first for piece in self.pieces[1:]), step]
        return [
            (piece, max(0, min(end, step) - piece.first))
            for piece, end in zip(self.pieces, ends, strict=True)
        ]


def parse(text: str) -> list[tuple[int, int]]:
    """ "0:64,1000:128" → [(0, 64), (1000, 128)]: from which step on, and what.

    Raises ValueError where it is none, or the steps do not ascend.
    """
    if not RAMP.fullmatch(text):
        raise ValueError("this is no ramp; type STEP:SIZE,… from step 0 on, e.g. 0:64,1000:128")
    points = [(int(step), int(size)) for step, size in (at.split(":") for at in text.split(","))]
    for (step, _), (later, size) in itertools.pairwise(points):
        if later <= step:
            raise ValueError(
                f"step {later} does not come after step {step}; type the steps in ascending "
                f"order, e.g. 0:{points[0][1]},{step + 1}:{size}"
            )
    return points


@functools.lru_cache(maxsize=64)
def ramp(batch_ramp: str | None, context_ramp: str | None, sequences: int, length: int) -> Ramp:
    """The Ramp of both settings; where one is unset: of `sequences` a step, of `length` tokens."""
    batches = parse(batch_ramp) if batch_ramp else [(0, sequences)]
    lengths = parse(context_ramp) if context_ramp else [(0, length)]
    steps = sorted({step for step, _ in batches + lengths})
    return Ramp(tuple(Piece(step, _at(batches, step), _at(lengths, step)) for step in steps))


def _at(points: list[tuple[int, int]], step: int) -> int:
    return next(size for first, size in reversed(points) if first <= step)
