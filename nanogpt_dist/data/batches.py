"""Which tokens a step sees: a pure function of (seed, data set id, settings, step).

No state, no scan, no memory.

The split is cut into windows of block_size tokens. In each epoch every window comes once, in an
order of its own: a keyed pseudo-random permutation that gives the i-th window in constant time.
Step s (from 0) reads samples sG … (s+1)G − 1 of that endless order,
G = batch_size × gradient_accumulation_steps, and each rank takes a slice of them: neither the
number of ranks nor the size of a micro-batch enters, and the position in the data is the step.

With a batch ramp G changes with the step: its first sample is the sum over the steps before, in
closed form. With a context ramp there is an order of this kind for each length of a window, and a
step reads on in that of its length, behind all samples that earlier steps read in it.

Source of the permutation: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (a Feistel
network that walks).
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist.config.ramps import Piece, Ramp
from nanogpt_dist.errors import BadDataError, ConfigError

# Of the Feistel network: four give a pseudo-random permutation (Luby & Rackoff 1988), two more are
# for good measure.
ROUNDS = 6

Positions = NDArray[np.int64]
Tokens = NDArray[np.int64]
T = TypeVar("T")


class Ids(Protocol):
    """A sequence of `tokens` ids below n_vocab, as a Split of a data folder is."""

    tokens: int
    n_vocab: int

    def read(self, start: int, length: int) -> np.ndarray:
        """The ids at start … start + length: (length,)."""


def _keys(*parts: object) -> NDArray[np.uint64]:
    """Eight 64-bit keys that are a function of `parts`."""
    text = "/".join(str(part) for part in parts).encode()
    return np.frombuffer(hashlib.sha512(text).digest(), dtype="<u8")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: Positions, size: int, keys: NDArray[np.uint64]) -> Positions:
    """Where a keyed permutation of range(size) sends each element of `index` (any shape)."""
    # bits in one half of the Feistel block
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    x = index.astype(np.uint64)
    walking = np.ones(x.shape, dtype=bool)
    # the block has up to 4 × size values: walk until the value falls into range(size)
    while walking.any():
        left, right = x[walking] >> half, x[walking] & mask
        for key in keys[:ROUNDS]:
            left, right = right, left ^ (_mix(right + key) & mask)
        x[walking] = (left << half) | right
        walking = x >= np.uint64(size)
    return x.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The endless order of the training windows of one split of `tokens` tokens."""

    seed: int
    dataset_id: str
    block_size: int
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < self.block_size + 1:
            raise BadDataError(
                f"the train split has {self.tokens} tokens, one window needs "
                f"{self.block_size + 1}; type --block-size {max(1, self.tokens - 1)} or prepare "
                "more text"
            )

    def of_length(self, length: int) -> "Order":
        """The order of windows of `length` tokens."""
        return self if length == self.block_size else replace(self, block_size=length)

    @property
    def windows(self) -> int:
        """Windows in one epoch: as many as fit behind any shift below block_size."""
        return max(1, (self.tokens - self.block_size) // self.block_size)

    def starts(self, samples: Positions) -> Positions:
        """First token of each sample of the endless order.

        A window is block_size tokens and the one that follows.
        """
        starts = np.empty_like(samples)
        epochs = samples // self.windows
        for epoch in np.unique(epochs):
            keys = _keys(self.seed, self.dataset_id, self.block_size, epoch)
            here = epochs == epoch
            window = permute(samples[here] % self.windows, self.windows, keys)
            # Each epoch cuts the split at another shift: windows begin elsewhere in a document.
            shift = int(
                keys[-1]
                % np.uint64(min(self.block_size, self.tokens - self.windows * self.block_size))
            )
            starts[here] = window * self.block_size + shift
        return starts


def micro_batch_size(batch_size: int, global_batch_size: int, ranks: int) -> int:
    """Sequences in one forward pass of one rank.

    The largest divisor of a rank's sequences that is ≤ batch_size.

    Raises ConfigError where the global batch cannot be shared out evenly.
    """
    if global_batch_size % ranks:
        valid = ", ".join(
            str(n) for n in range(1, min(global_batch_size, 64) + 1) if global_batch_size % n == 0
        )
        raise ConfigError(
            f"{ranks} ranks cannot share {global_batch_size} sequences a step evenly; possible: "
            f"{valid}"
        )
    share = global_batch_size // ranks
    return next(n for n in range(min(batch_size, share), 0, -1) if share % n == 0)


def read_windows(split: Ids, starts: Positions, block_size: int) -> tuple[Tokens, Tokens]:
    """Inputs and their next-token targets, each (len(starts), block_size) int64."""
    rows = np.stack([split.read(int(start), block_size + 1) for start in starts]).astype(np.int64)
    return rows[:, :-1], rows[:, 1:]


@dataclass(frozen=True)
class DocumentStarts:
    """Where documents start: at the end-of-text id before them, or behind that of the one before.

    eot_id: of the split's tokenizer. behind: whether end of text is the last id of a document, and
    not its first.
    """

    eot_id: int
    behind: bool

    def align(self, split: Ids, start: int, length: int) -> int:
        """Where a window of `length` tokens from `start` begins: with the first document in it.

        As it stands where no document starts in it, or one that the split ends too soon for. Reads
        the window, once more than what is read of it then.
        """
        if start == 0:  # where the first document does
            return start
        ids = split.read(start - self.behind, length)
        found = np.flatnonzero(ids == self.eot_id)
        aligned = start + (int(found[0]) if found.size else 0)
        return aligned if aligned + length + 1 <= split.tokens else start


@dataclass(frozen=True)
class Batches:
    """One rank's part of the global batches.

    order: of windows of block_size tokens. global_batch_size: sequences in a step, where `ramp`
    does not say it of each. batch_size: sequences of a micro-batch, at most. aligned: to what each
    window is moved; None: it stays.
    """

    split: Ids
    order: Order
    global_batch_size: int
    batch_size: int
    rank: int
    ranks: int
    ramp: Ramp | None = None
    aligned: DocumentStarts | None = None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Of the ramp; without one the only one."""
        if self.ramp is not None:
            return self.ramp.pieces
        return (Piece(0, self.global_batch_size, self.order.block_size),)

    def micro_batches(self, piece: Piece) -> tuple[int, int]:
        """Micro-batches of this rank in a step of `piece`, and the sequences of each.

        Raises ConfigError where the ranks cannot share them.
        """
        batch_size = micro_batch_size(self.batch_size, piece.sequences, self.ranks)
        return piece.sequences // self.ranks // batch_size, batch_size

    @property
    def per_update(self) -> int:
        """Micro-batches of this rank in one step; with a ramp at its end."""
        return self.micro_batches(self.pieces[-1])[0]

    def at(self, step: int) -> Piece:
        """What step number `step` reads."""
        return Ramp(self.pieces).at(step)

    def starts(self, step: int) -> Positions:
        """First tokens of all windows of step `step`, over all ranks: (global batch,).

        Those that align() moves where they are before that.
        """
        piece = self.at(step)
        first = Ramp(self.pieces).sequences_before(step, piece.length)
        samples = np.arange(first, first + piece.sequences, dtype=np.int64)
        return self.order.of_length(piece.length).starts(samples)

    def align(self, starts: Positions, length: int) -> Positions:
        """Where windows of `length` tokens from `starts` are read from."""
        if self.aligned is None:
            return starts
        moved = [self.aligned.align(self.split, int(start), length) for start in starts]
        return np.array(moved, dtype=np.int64)

    def of(self, step: int) -> Iterator[tuple[Tokens, Tokens]]:
        """This rank's micro-batches of step `step`: inputs and targets, each (B, T) int64."""
        piece = self.at(step)
        count, batch_size = self.micro_batches(piece)
        share = count * batch_size
        mine = self.starts(step)[self.rank * share : (self.rank + 1) * share]
        mine = self.align(mine, piece.length)
        for i in range(0, share, batch_size):
            yield read_windows(self.split, mine[i : i + batch_size], piece.length)


class Prefetcher(Generic[T]):
    """Batches, read one step ahead while the device is at work; close() it at the end.

    stage: what the thread that reads them makes of a step's micro-batches; list: nothing else.
    """

    def __init__(self, batches: Batches, stage: Callable[[Iterator[tuple[Tokens, Tokens]]], T]):
        self.batches, self._stage = batches, stage
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """Batches.of(step), staged. Raises here what reading them raised in the thread."""
        at_hand = self._next[1] if self._next and self._next[0] == step else self._submit(step)
        staged = at_hand.result()
        self._next = step + 1, self._submit(step + 1)
        return staged

    def close(self) -> None:
        """Leave what is being read."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, step: int) -> Future[T]:
        return self._thread.submit(lambda: self._stage(self.batches.of(step)))
