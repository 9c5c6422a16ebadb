"""Whole files read once, several at a time, in threads.

Threads are enough: hashlib, zlib and numpy leave the interpreter.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nanogpt_dist.data.format import BLOCK_BYTES
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import open_plain, shown, storage_errors

Progress = Callable[[int, int], None]  # bytes read, bytes in all
Item = TypeVar("Item")
Found = TypeVar("Found")


def default_threads() -> int:
    """One for each core that we may use, at most 8: then the disk is what one waits for."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, 8)


class ReadProgress:
    """Adds up the bytes that all threads have read, for `progress`.

    Ends them once `stop` is set.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        if self.stop.is_set():
            raise BadDataError("stopped")  # nobody waits for the result any more
        with self._lock:
            self.done += count
            if self.progress is not None:
                self.progress(self.done, self.total)


def in_threads(
    work: Callable[[Item], Found],
    items: Sequence[Item],
    meter: ReadProgress,
    threads: int | None,
) -> list[Found]:
    """`work` of each item, in their order.

    An error, or Ctrl-C, ends the other threads and is raised.
    """
    pool = ThreadPoolExecutor(threads or default_threads())
    try:
        futures = [pool.submit(work, item) for item in items]
        return [future.result() for future in futures]
    except BaseException:
        meter.stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_blocks(path: Path, size: int, first: int, meter: ReadProgress) -> Iterator[bytes]:
    """The `first` bytes of a file, then the rest of its `size` bytes MiB by MiB.

    Raises BadDataError where it has fewer or more bytes, StorageError.
    """
    with storage_errors(path), open_plain(path) as file:
        left, want = size, first or BLOCK_BYTES
        while left and (data := file.read(min(want, left))):
            meter.add(len(data))
            yield data
            left, want = left - len(data), BLOCK_BYTES
        if left or file.read(1):
            raise BadDataError(
                f"{shown(path)} changed while it was read, from {size:,} bytes; do not write to it"
            )
