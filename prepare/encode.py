"""Text to ids on several cores, in order. What a batch holds depends on the text alone, so the workers do not show."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np

from nanogpt_dist.errors import StorageError
from nanogpt_dist.shards.manifest import SplitName
from nanogpt_dist.tokenizer import Tokenizer, load

BATCH_CHARS = 1 << 20
ATTEMPTS = 3  # at the same batch, before a dying worker is taken for more than bad luck


@dataclass(frozen=True)
class Part:
    """A piece of a document; last: the document ends with it."""

    split: SplitName
    text: str
    last: bool


@dataclass
class Batch:
    """Parts that are encoded in one go. read_bytes: how much of the sources was consumed up to here."""

    parts: list[Part] = field(default_factory=list)
    chars: int = 0
    read_bytes: int = 0


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch that belong to one split; ends: positions behind the last id of each document."""

    split: SplitName
    ids: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Result:
    encoded: list[Encoded]
    read_bytes: int


def batches(parts: Iterable[tuple[Part, int]]) -> Iterator[Batch]:
    """Group (part, bytes read so far) into batches of about a million characters."""
    batch = Batch()
    for part, read_bytes in parts:
        batch.parts.append(part)
        batch.chars += len(part.text)
        batch.read_bytes = read_bytes
        if batch.chars >= BATCH_CHARS:
            yield batch
            batch = Batch()
    if batch.parts:
        yield batch


def encode_batches(batches: Iterable[Batch], tokenizer: Path, end_of_text: bool, workers: int) -> Iterator[Result]:
    """Encode with the tokenizer saved at `tokenizer`; end_of_text: append its id to each document. In order.

    workers: processes; 1: this one. At most 2 × workers + 2 batches are in memory.
    Raises BadDataError for text without ids, StorageError where workers keep dying.
    """
    if workers > 1:
        return _in_processes(batches, tokenizer, end_of_text, workers)
    loaded = load(tokenizer)
    return (_encode(loaded, end_of_text, batch) for batch in batches)


def _encode(tokenizer: Tokenizer, end_of_text: bool, batch: Batch) -> Result:
    eot = np.array([tokenizer.eot_id] if end_of_text else [], dtype=tokenizer.dtype)
    encoded = []
    for split in dict.fromkeys(part.split for part in batch.parts):
        parts = [part for part in batch.parts if part.split == split]
        ids = [np.append(tokenizer.encode(p.text), eot) if p.last else tokenizer.encode(p.text) for p in parts]
        stops = np.cumsum([len(some) for some in ids], dtype=np.int64)
        encoded.append(Encoded(split, np.concatenate(ids), stops[[part.last for part in parts]]))
    return Result(encoded, batch.read_bytes)


def _in_processes(batches: Iterable[Batch], tokenizer: Path, end_of_text: bool, workers: int) -> Iterator[Result]:
    source = iter(batches)
    waiting: deque[Batch] = deque()  # handed out, in order, not answered yet
    failures = 0
    while failures < ATTEMPTS:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, end_of_text))
        try:
            futures: deque[Future[Result]] = deque(_submit(pool, batch) for batch in waiting)
            while True:
                while len(waiting) < 2 * workers + 2 and (batch := next(source, None)) is not None:
                    waiting.append(batch)
                    futures.append(_submit(pool, batch))
                if not futures:
                    return
                result = futures.popleft().result()
                waiting.popleft()
                failures = 0
                yield result
        except BrokenProcessPool:
            failures += 1
        finally:
            pool.shutdown(cancel_futures=True)
    raise StorageError(f"a worker process died {ATTEMPTS} times (killed, or out of memory); type --workers 1 or fewer")


def _submit(pool: ProcessPoolExecutor, batch: Batch) -> Future[Result]:
    """Hand out a batch. Workers start in here, and inherit that they do not hear Ctrl-C: the parent stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, batch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in a worker process

_worker: tuple[Tokenizer, bool] | None = None


def _start_worker(tokenizer: Path, end_of_text: bool) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = load(tokenizer), end_of_text


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(batch: Batch) -> Result:
    assert _worker is not None
    return _encode(*_worker, batch)
