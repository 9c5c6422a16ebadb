"""Units encoded by several processes; one that dies costs only time.

A document that kills workers again and again is named.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from nanogpt_dist.errors import StorageError, one_line
from nanogpt_dist.tokenizer import load
from prepare.units.encode import Job, UnitRecord, encode_unit
from prepare.units.worker import Worker, WorkerDiedError

DEATHS = 2  # of workers at a unit, after which it is encoded while no other is
AHEAD = 2  # units that a worker is given, the one at hand included


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
        yield from (encode_unit(job, loaded, folder) for job in jobs)
        return
    source = iter(jobs)
    with _Workers(workers, tokenizer, folder) as pool:
        while True:
            while pool.has_room and (job := pool.lost() or next(source, None)) is not None:
                pool.give(job)
            if pool.is_busy:
                yield from pool.take()
            elif pool.suspects:
                yield pool.encode_alone(pool.suspects.pop(), trace)
            else:
                return


class _Workers:
    """Up to `most` workers, which are killed when the block is left.

    suspects: units at which DEATHS workers have died; until they are encoded, no other is begun.
    """

    def __init__(self, most: int, tokenizer: Path, folder: Path) -> None:
        self.most, self.tokenizer, self.folder = most, tokenizer, folder
        self.workers: list[Worker] = []
        self.suspects: list[Job] = []
        self._lost: list[Job] = []
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    @property
    def is_busy(self) -> bool:
        return any(worker.jobs for worker in self.workers)

    @property
    def has_room(self) -> bool:
        """Whether a worker, one that starts for it too, may have another unit."""
        given = sum(len(worker.jobs) for worker in self.workers)
        return not self.suspects and given < AHEAD * self.most

    def lost(self) -> Job | None:
        """A unit that a worker has taken with it; to be given to another."""
        return self._lost.pop() if self._lost else None

    def give(self, job: Job) -> None:
        """To a worker that has nothing to do, or a new one, or the one with the least to do."""
        worker = min(self.workers, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self.workers) < self.most):
            worker = self._start()
        worker.give(job)

    def take(self) -> Iterator[UnitRecord]:
        """The records that are there, or will be first."""
        busy = [worker for worker in self.workers if worker.jobs]
        ready = wait([worker.pipe for worker in busy])
        for worker in (worker for worker in busy if worker.pipe in ready):
            try:
                record = worker.take()
            except WorkerDiedError:
                self._bury(worker)
            else:
                yield record

    def encode_alone(self, job: Job, trace: Path) -> UnitRecord:
        """By a worker of its own; the trace tells at which document that dies, if it does."""
        trace.unlink(missing_ok=True)
        worker = self._start()
        worker.give(job, trace)
        try:
            record = worker.take()
        except WorkerDiedError:
            where = "the start of the worker"
            if trace.exists():
                where = one_line(trace.read_text(errors="replace"), 80)
            raise StorageError(
                f"a worker died {DEATHS + 1} times, now at {where}: killed, or out of memory; "
                "see the system log"
            ) from None
        self._end(worker)
        return record

    def _start(self) -> Worker:
        self.workers.append(worker := Worker(self.tokenizer, self.folder))
        worker.start()
        return worker

    def _bury(self, worker: Worker) -> None:
        """It has died: others are to encode what it was given."""
        at_hand, *others = worker.jobs
        self._deaths[at_hand.unit] += 1
        (self.suspects if self._deaths[at_hand.unit] == DEATHS else self._lost).append(at_hand)
        self._lost += others
        self._end(worker)

    def _end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()
