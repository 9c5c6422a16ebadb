"""Units encoded by several processes; one that dies costs only time.

A document that kills workers again and again is named.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

from nanogpt_dist.errors import StorageError, one_line
from nanogpt_dist.signals import SIGNALS
from nanogpt_dist.tokenizer import Tokenizer, load
from prepare.units.encode import Job, UnitRecord, encode_unit

AGAIN = 2  # times that a unit is tried by itself, after a worker has died while it was at hand


def encode_units(
    jobs: Iterable[Job],
    tokenizer: Path,
    folder: Path,
    workers: int,
    trace: Path,
) -> Iterator[UnitRecord]:
    """Encode units into `folder`; yields their records as they are done, in any order.

    tokenizer: the file it was saved in.

    workers: processes; 1: this one. trace: a file for the name of the document at hand, where one
    kills its worker. Raises BadDataError for text without ids, StorageError where a worker keeps
    dying.
    """
    if workers == 1:
        loaded = load(tokenizer)
        for job in jobs:
            yield encode_unit(job, loaded, folder)
        return
    source = iter(jobs)
    at_hand: Job | None = None  # taken from the source, not handed out yet
    while True:
        running: dict[Future[UnitRecord], Job] = {}
        with _pool(workers, tokenizer, folder) as pool:
            try:
                while True:
                    while (
                        len(running) < 2 * workers
                        and (at_hand := at_hand or next(source, None)) is not None
                    ):
                        running[_submit(pool, at_hand)] = at_hand
                        at_hand = None
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        record = future.result()
                        del running[future]
                        yield record
            except BrokenProcessPool:
                pass
        suspects = []  # at hand, or about to be, when a worker died
        for future, job in running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                yield future.result()
            else:
                suspects.append(job)
        for job in suspects:
            yield _alone(job, tokenizer, folder, trace)


def _alone(job: Job, tokenizer: Path, folder: Path, trace: Path) -> UnitRecord:
    """A unit in a process of its own, AGAIN times if that dies.

    Then the trace tells at which document.
    """
    for _ in range(AGAIN):
        trace.unlink(missing_ok=True)
        with _pool(1, tokenizer, folder) as pool:
            try:
                return _submit(pool, job, trace).result()
            except BrokenProcessPool:
                pass
    document = (
        one_line(trace.read_text(errors="replace"), 80)
        if trace.exists()
        else "the start of the worker"
    )
    raise StorageError(
        f"a worker died {AGAIN + 1} times, now at {document}: killed, or out of memory; see the "
        "system log"
    )


@contextmanager
def _pool(workers: int, tokenizer: Path, folder: Path) -> Iterator[ProcessPoolExecutor]:
    """Workers that are gone when the block is left, at once if it fails."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, folder))
    try:
        yield pool
    except BaseException:
        for child in active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, job: Job, trace: Path | None = None) -> "Future[UnitRecord]":
    """Hand out a unit.

    Workers start in here, and inherit that they do not hear Ctrl-C: the parent stops them.
    """
    with _undisturbed():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return pool.submit(_work, job, trace)
        except (OSError, ValueError):  # its pipes were closed while a worker was being started
            pool.submit(int)  # raises BrokenProcessPool, if a worker's death is why
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hear a request to stop at the end of the block only.

    A process half started cannot be cleaned up.

    Blocking signals would not do: another thread may take them, and the handler runs in this one
    all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in heard:
            signal.raise_signal(signum)


# ---- in a worker process

_worker: tuple[Tokenizer, Path] | None = None


def _start_worker(tokenizer: Path, folder: Path) -> None:
    global _worker
    # the pool itself stops workers by SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = load(tokenizer), folder


def _die_with_parent() -> None:
    import os

    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: Job, trace: Path | None) -> UnitRecord:
    assert _worker is not None
    return encode_unit(job, *_worker, trace)
