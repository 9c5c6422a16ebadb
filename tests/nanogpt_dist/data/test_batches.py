"""The order of the data: every window once, the same for every number of ranks and every size of
micro-batch.
"""

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.config import ramps
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import (
    Batches,
    DocumentStarts,
    Order,
    Prefetcher,
    _keys,
    micro_batch_size,
    permute,
)
from nanogpt_dist.errors import BadDataError, ConfigError


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_permute_is_a_permutation_of_its_range(size: int, seed: int) -> None:
    found = permute(np.arange(size), size, _keys(seed))
    assert sorted(found.tolist()) == list(range(size))


def test_permute_reaches_sizes_that_no_list_could_hold() -> None:
    size = 10**13 + 7
    found = permute(np.arange(1000), size, _keys("a"))
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() <= found.max() < size
    assert abs(found.mean() / size - 0.5) < 0.05


def test_permute_differs_from_key_to_key_and_leaves_few_neighbours() -> None:
    a, b = (permute(np.arange(10_000), 10_000, _keys(key)) for key in "ab")
    assert (a == b).mean() < 0.01
    assert (np.abs(np.diff(a)) == 1).mean() < 0.01


@given(block_size=st.integers(1, 40), tokens=st.integers(2, 2000), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_an_epoch_has_every_window_once_and_none_leaves_the_split(
    block_size: int,
    tokens: int,
    seed: int,
) -> None:
    if tokens < block_size + 1:
        with pytest.raises(BadDataError, match="one window needs"):
            Order(seed, "data", block_size, tokens)
        return
    order = Order(seed, "data", block_size, tokens)
    for epoch in range(3):
        samples = np.arange(epoch * order.windows, (epoch + 1) * order.windows)
        starts = np.sort(order.starts(samples))
        assert (np.diff(starts) == block_size).all(), "windows overlap or leave a gap"
        assert starts[0] >= 0
        assert starts[-1] + block_size + 1 <= tokens


def test_the_order_is_that_of_every_version() -> None:
    """A run that another version resumes reads on, and reads nothing twice."""
    order = Order(1337, "data", 32, 100_000)
    assert order.starts(np.arange(6)).tolist() == [11340, 53932, 2284, 35436, 58892, 74732]
    late = Order(7, "other", 8, 10**10).starts(np.arange(3) + 2 * 10**9)  # of the second epoch
    assert late.tolist() == [6_792_714_723, 6_596_757_987, 4_926_756_979]


def test_the_permutation_of_every_size_is_that_of_every_version() -> None:
    """Of one window to 130: on both sides of each power of two, by which its block is cut."""
    digest = hashlib.sha256()
    for size in range(1, 131):
        found = permute(np.arange(size), size, _keys("size", size))
        assert sorted(found.tolist()) == list(range(size))
        digest.update(found.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "4f88e8ea7c9b659a"


def test_the_shift_of_every_split_is_that_of_every_version() -> None:
    """Of splits of one window and more, with no token, some, or all but one left over."""
    starts = [
        Order(1337, "data", 32, tokens).starts(np.arange(2)).tolist()
        for tokens in (33, 34, 50, 63, 64, 65, 95, 96, 97, 110)
    ]
    assert starts == [
        [0, 0],
        [0, 0],
        [6, 6],
        [8, 2],
        [12, 8],
        [12, 8],
        [12, 8],
        [12, 44],
        [12, 44],
        [12, 44],
    ]
    with pytest.raises(
        BadDataError, match="has 32 tokens, one window needs 33; type --block-size 31"
    ):
        Order(1337, "data", 32, 32)


def test_epochs_differ_in_order_and_shift() -> None:
    order = Order(1, "data", 64, 64 * 500)
    first, second = (
        order.starts(np.arange(order.windows) + epoch * order.windows) for epoch in range(2)
    )
    assert first[0] % 64 != second[0] % 64
    assert (first // 64 == second // 64).mean() < 0.05


@pytest.mark.parametrize("change", [{"seed": 2}, {"dataset_id": "other"}, {"block_size": 32}])
def test_the_order_depends_on_seed_data_and_block_size(change: dict[str, object]) -> None:
    values: dict[str, object] = {
        "seed": 1,
        "dataset_id": "data",
        "block_size": 64,
        "tokens": 64_000,
    }
    samples = np.arange(100)
    assert (Order(**values).starts(samples) != Order(**{**values, **change}).starts(samples)).any()  # type: ignore[arg-type]


@given(
    batch_size=st.integers(1, 12),
    accumulation=st.integers(1, 12),
    ranks=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 500),
)
@settings(max_examples=60)
def test_the_ids_of_a_global_batch_are_equal_on_any_ranks_and_split(
    corpus: Path,
    batch_size: int,
    accumulation: int,
    ranks: int,
    step: int,
) -> None:
    data = DataFolder.open(corpus)
    order = Order(1337, data.dataset_id, 16, data.split("train").tokens)
    total = batch_size * accumulation
    whole = next(Batches(data.split("train"), order, total, total, 0, 1).of(step))
    if total % ranks:
        with pytest.raises(ConfigError, match="cannot share"):
            micro_batch_size(batch_size, total, ranks)
        return
    micro = micro_batch_size(batch_size, total, ranks)
    assert micro <= batch_size
    parts = [
        part
        for r in range(ranks)
        for part in Batches(data.split("train"), order, total, micro, r, ranks).of(step)
    ]
    assert (
        len(parts) == ranks * Batches(data.split("train"), order, total, micro, 0, ranks).per_update
    )
    assert np.array_equal(np.concatenate([x for x, _ in parts]), whole[0])
    assert np.array_equal(np.concatenate([y for _, y in parts]), whole[1])


class Drawn:
    """A split of ids that are drawn, with few that are an end of text, 0."""

    def __init__(self, tokens: int, n_vocab: int = 9) -> None:
        self.tokens, self.n_vocab = tokens, n_vocab
        self.ids = np.random.default_rng(tokens).integers(n_vocab, size=tokens, dtype=np.uint16)

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= self.tokens
        return self.ids[start : start + length]


def _ramps(sizes: list[int]) -> st.SearchStrategy[str | None]:
    """A ramp of 1 to 4 pieces within the first 30 steps, or none."""
    later = st.lists(st.integers(1, 30), max_size=3, unique=True).map(sorted)
    steps = later.map(lambda steps: [0, *steps])
    drawn = steps.flatmap(
        lambda at: st.tuples(*(st.tuples(st.just(s), st.sampled_from(sizes)) for s in at))
    )
    return st.none() | drawn.map(lambda at: ",".join(f"{step}:{size}" for step, size in at))


@given(
    batch_ramp=_ramps([4, 8, 12]),
    context_ramp=_ramps([4, 8, 16, 32]),
    ranks=st.sampled_from([1, 2, 4]),
    aligned=st.sampled_from([None, DocumentStarts(0, True), DocumentStarts(0, False)]),
)
@settings(max_examples=40)
def test_the_steps_of_a_ramp_tile_the_order_of_each_length_on_any_ranks(
    batch_ramp: str | None,
    context_ramp: str | None,
    ranks: int,
    aligned: DocumentStarts | None,
) -> None:
    split = Drawn(3000)
    order = Order(7, "data", 32, split.tokens)
    ramp = ramps.ramp(batch_ramp, context_ramp, 4, 32)
    each = [Batches(split, order, 4, 3, rank, ranks, ramp, aligned) for rank in range(ranks)]
    whole = Batches(split, order, 12, 12, 0, 1, ramp, aligned)
    read, tokens = Counter[int](), 0  # sequences of each length, as a scan over the steps has them
    for step in range(40):
        piece = ramp.at(step)
        samples = read[piece.length] + np.arange(piece.sequences)
        starts = whole.starts(step)
        assert np.array_equal(starts, Order(7, "data", piece.length, 3000).starts(samples))
        assert (ramp.sequences_before(step, piece.length), ramp.tokens_before(step)) == (
            read[piece.length],
            tokens,
        )
        read[piece.length] += piece.sequences
        tokens += piece.tokens
        assert ramp.steps_of(tokens) == step + 1
        assert ramp.steps_of(tokens - 1) == step + 1
        assert ramp.steps_of(tokens + 1) == step + 2
        [(x, y)] = whole.of(step)
        parts = [part for batches in each for part in batches.of(step)]
        assert np.array_equal(np.concatenate([x for x, _ in parts]), x)
        assert np.array_equal(np.concatenate([y for _, y in parts]), y)
        assert x.shape == (piece.sequences, piece.length)


@given(step=st.integers(0, 10**6), sequences=st.integers(1, 64))
def test_without_a_ramp_and_with_one_that_never_changes_the_order_is_what_it_was(
    step: int, sequences: int
) -> None:
    split = Drawn(3000)
    order = Order(7, "data", 32, split.tokens)
    first = step * sequences
    expected = order.starts(np.arange(first, first + sequences, dtype=np.int64))
    never = ramps.ramp(f"0:{sequences},10:{sequences}", "0:32", 1, 32)
    for ramp in (None, never):
        batches = Batches(split, order, sequences, sequences, 0, 1, ramp)
        assert np.array_equal(batches.starts(step), expected)


@given(tokens=st.integers(20, 400), length=st.integers(1, 19), behind=st.booleans())
@settings(max_examples=60)
def test_an_aligned_window_begins_at_the_first_document_in_it_and_stays_in_the_split(
    tokens: int, length: int, behind: bool
) -> None:
    split, starts = Drawn(tokens), DocumentStarts(0, behind)
    # where documents start, by their definition
    documents = {0} | {i + behind for i in range(tokens) if split.ids[i] == 0}
    for start in range(tokens - length):
        found = [p for p in range(start, start + length) if p in documents]
        expected = found[0] if found and found[0] + length + 1 <= tokens else start
        assert starts.align(split, start, length) == expected


def test_aligned_windows_of_an_epoch_are_still_different_ones() -> None:
    split = Drawn(20_000, 40)
    order = Order(7, "data", 32, split.tokens)
    batches = Batches(split, order, 8, 8, 0, 1, None, DocumentStarts(0, True))
    starts = order.starts(np.arange(order.windows))
    aligned = batches.align(starts, 32)
    assert (aligned != starts).mean() > 0.3
    assert len(set(aligned.tolist())) == order.windows


def test_ranks_that_cannot_share_a_ramps_smallest_batch_are_told() -> None:
    split = Drawn(3000)
    ramp = ramps.ramp("0:6,10:12", None, 1, 32)
    batches = Batches(split, Order(7, "data", 32, 3000), 12, 4, 0, 4, ramp)
    with pytest.raises(ConfigError, match=r"4 ranks cannot share 6 sequences .* possible: 1, 2, 3"):
        batches.micro_batches(batches.pieces[0])
    assert batches.micro_batches(batches.pieces[1]) == (1, 3)


def test_what_a_ramp_ends_with_is_what_an_update_reads() -> None:
    split, ramp = Drawn(3000), ramps.ramp("0:4,10:12,20:24", None, 1, 32)
    batches = Batches(split, Order(7, "data", 32, 3000), 24, 4, 0, 2, ramp)
    assert [batches.micro_batches(piece) for piece in batches.pieces] == [(1, 2), (2, 3), (3, 4)]
    assert batches.per_update == 3


def test_targets_are_the_inputs_shifted_by_one(corpus: Path) -> None:
    split = DataFolder.open(corpus).split("train")
    x, y = next(Batches(split, Order(1, "id", 32, split.tokens), 4, 4, 0, 1).of(3))
    assert x.shape == y.shape == (4, 32)
    assert x.dtype == y.dtype == np.int64
    assert np.array_equal(x[:, 1:], y[:, :-1])


def test_reading_ahead_changes_nothing_and_tells_of_damage_in_its_turn(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = DataFolder.open(corpus).split("train")
    batches = Batches(split, Order(1, "id", 32, split.tokens), 8, 4, 0, 1)
    with contextlib.closing(Prefetcher(batches, list)) as prefetcher:
        for step in (0, 1, 2, 7, 8, 3):
            for found, expected in zip(prefetcher.get(step), batches.of(step), strict=True):
                assert np.array_equal(found, expected)

        def damaged(start: int, length: int) -> np.ndarray:
            raise BadDataError("damaged")

        prefetcher.get(20)
        prefetcher._next[1].result()  # type: ignore[index]
        monkeypatch.setattr(split, "read", damaged)
        prefetcher.get(21)
        with pytest.raises(BadDataError, match="damaged"):
            prefetcher.get(22)


def test_each_step_is_read_once_and_the_next_one_ahead() -> None:
    read: list[int] = []

    class Told(Batches):
        def of(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            read.append(step)
            return super().of(step)

    batches = Told(Drawn(3000), Order(7, "data", 32, 3000), 4, 4, 0, 1)
    with contextlib.closing(Prefetcher(batches, list)) as prefetcher:
        for step in (0, 1, 2, 7, 8):
            prefetcher.get(step)
        prefetcher._next[1].result()  # type: ignore[index]
    assert read == [0, 1, 2, 3, 7, 8, 9]


def test_closing_does_not_wait_for_what_is_being_read_and_ends_the_thread() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    staged: list[tuple[np.ndarray, np.ndarray]] = []

    def stage(parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        if staged:  # it reads ahead
            begun.set()
            goes_on.wait(20)
        staged.extend(parts)

    before = set(threading.enumerate())
    prefetcher = Prefetcher(Batches(Drawn(3000), Order(7, "data", 32, 3000), 4, 4, 0, 1), stage)
    prefetcher.get(0)
    assert begun.wait(20)
    prefetcher.close()
    assert len(staged) == 1
    goes_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_three_ranks_are_told_which_numbers_are_possible() -> None:
    with pytest.raises(
        ConfigError, match=r"3 ranks cannot share 8 sequences a step evenly; possible: 1, 2, 4, 8$"
    ):
        micro_batch_size(4, 8, 3)
