"""Units encoded by several processes: one that dies costs nothing; what kills it again and again is
named.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data.manifest import SplitRuleRecord
from nanogpt_dist.errors import BadDataError, StorageError
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.units.encode import Job, unit_path
from prepare.units.plan import Slice
from prepare.units.pool import _submit, encode_units

RULE = SplitRuleRecord(rule="documents", val_fraction=0.1, seed=1)


def job(unit: int, path: Path) -> Job:
    piece = Slice(0, 0, path.stat().st_size, 1, split="train")
    part = Part(path, Format("lines"), 0, path.stat().st_size, "text", "strict")
    return Job(unit, "a plan", ((piece, part),), RULE, "append", None, None)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Forty units of a few thousand lines, with the byte tokenizer beside them."""
    tokenizers.byte().save(tmp_path / "t.json")
    (tmp_path / "units").mkdir()
    jobs = []
    for unit in range(40):
        path = tmp_path / f"{unit}.jsonl"
        path.write_text("".join(f'{{"text": "text {unit} {line}"}}\n' for line in range(2000)))
        jobs.append(job(unit, path))
    return jobs


def test_a_killed_worker_costs_nothing(jobs: list[Job], tmp_path: Path) -> None:
    done = set()
    for record in encode_units(
        jobs, tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace"
    ):
        done.add(record.unit)
        if len(done) in (5, 20):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            # noticed as the next unit is handed out, or before
            time.sleep(0.5 if len(done) == 5 else 0)
    assert done == set(range(40))
    for unit in done:
        ids = np.fromfile(unit_path(tmp_path / "units", unit, "train"), np.uint16)
        lines = tokenizers.byte().decode(ids).split("<|endoftext|>")
        assert lines == [*(f"text {unit} {line}" for line in range(2000)), ""]
    assert not list((tmp_path / "units").glob(".tmp-*.json*"))


def test_the_document_that_kills_its_worker_is_named(jobs: list[Job], tmp_path: Path) -> None:
    """A killer, as the kernel is one when memory runs out: it spares nobody who is at the poisoned
    document.
    """
    poisoned = tmp_path / "poison.jsonl"
    poisoned.write_text(
        '{"text": "harmless"}\n'
        + '{"text": "poison"}\n'
        + "".join('{"text": "x"}\n' for _ in range(400_000))
    )
    stop = threading.Event()
    trace = tmp_path / "trace"

    def kill() -> None:
        while not stop.is_set():
            busy = list((tmp_path / "units").glob(".tmp-000007.train*"))
            children = multiprocessing.active_children()
            alone = len(children) == 1
            if busy and (not alone or (trace.exists() and "poison.jsonl:" in trace.read_text())):
                for child in children:
                    child.kill()
                time.sleep(0.2)
                for path in busy:
                    path.unlink(missing_ok=True)
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    jobs[7] = job(7, poisoned)
    run: Callable[[], list[int]] = lambda: [  # noqa: E731
        record.unit
        for record in encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 2, trace)
    ]
    killer.start()
    try:
        with pytest.raises(
            StorageError, match=r"a worker died 3 times, now at .*poison\.jsonl:\d+: killed"
        ):
            run()
    finally:
        stop.set()
        killer.join()


def test_a_pool_that_breaks_while_a_worker_is_being_started_is_a_broken_one(
    jobs: list[Job],
) -> None:
    """What the library raises then: its other thread has closed the pipes meanwhile."""

    class Breaking(ProcessPoolExecutor):
        tried = 0

        def submit(self, *_: object) -> Any:  # type: ignore[override]
            self.tried += 1
            if self.tried == 1:
                raise ValueError("bad value(s) in fds_to_keep")
            raise BrokenProcessPool

    with pytest.raises(BrokenProcessPool):
        _submit(Breaking(1), jobs[0])


def test_a_worker_that_cannot_start_is_an_error(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("no tokenizer")
    with pytest.raises(StorageError, match="died 3 times, now at the start of the worker"):
        list(encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace"))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_in_workers_arrive_with_the_document(workers: int, tmp_path: Path) -> None:
    tokenizers.char("ab").save(tmp_path / "t.json")
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"text": "abc"}\n')
    (tmp_path / "units").mkdir()
    with pytest.raises(BadDataError, match=r"a\.jsonl:2: character 'c' \(U\+0063\)"):
        list(
            encode_units(
                [job(0, tmp_path / "a.jsonl")],
                tmp_path / "t.json",
                tmp_path / "units",
                workers,
                tmp_path / "t",
            )
        )
    assert not list((tmp_path / "units").iterdir())
