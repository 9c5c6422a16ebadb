"""Units encoded by several processes: one that dies costs nothing; what kills it again and again is
named.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data.manifest import SplitRuleRecord
from nanogpt_dist.errors import BadDataError, StorageError
from nanogpt_dist.signals import SIGNALS
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.units.encode import Job, UnitRecord, unit_path
from prepare.units.plan import Slice
from prepare.units.pool import AHEAD, DEATHS, encode_units
from prepare.units.worker import Worker, WorkerDiedError, _portable
from tests.conftest import CLONE

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
        deaths = 0
        while not stop.is_set():
            busy = list((tmp_path / "units").glob(".tmp-000007.train*"))
            named = trace.exists() and "poison.jsonl:" in trace.read_text()
            if busy and (deaths < DEATHS or named):
                deaths += 1
                for child in multiprocessing.active_children():
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


def after_each_launch(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[list[int]], None]
) -> list[int]:
    """The ids of the processes launched so far, the newest last; `act` is given them each time."""
    launch, launched = Popen._launch, list[int]()  # type: ignore[attr-defined]

    def launch_and_act(self: Popen, process: object) -> None:
        launch(self, process)
        launched.append(self.pid)
        act(launched)

    monkeypatch.setattr(Popen, "_launch", launch_and_act)
    return launched


def test_a_worker_killed_while_another_starts_costs_nothing(
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """concurrent.futures waits for ever for the one that starts."""

    def kill_the_first(launched: list[int]) -> None:
        if len(launched) == 2:
            os.kill(launched[0], signal.SIGKILL)
            time.sleep(0.2)

    after_each_launch(monkeypatch, kill_the_first)
    units = encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace")
    assert {record.unit for record in units} == set(range(40))
    assert not multiprocessing.active_children()


def test_units_that_a_dead_worker_was_given_are_given_again_at_once(
    jobs: list[Job],
    tmp_path: Path,
) -> None:
    """Others go on meanwhile: none is stopped, and a unit runs alone after two deaths only."""
    records = encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 3, tmp_path / "trace")
    done = {next(records).unit}
    killed, *others = multiprocessing.active_children()
    killed.kill()
    done |= {next(records).unit for _ in range(20)}
    assert set(others) <= set(multiprocessing.active_children())
    assert done | {record.unit for record in records} == set(range(40))
    assert not (tmp_path / "trace").exists()


def test_each_worker_is_given_as_many_units_ahead_as_the_others(
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[int, int] = {}  # units of each worker that it has not given back
    give, take = Worker.give, Worker.take

    def giving(self: Worker, *job: Any) -> None:
        give(self, *job)
        given[id(self)] = len(self.jobs)

    def taking(self: Worker) -> UnitRecord:
        if not taken:
            assert sorted(given.values()) == [AHEAD] * 3
        taken.append(self)
        return take(self)

    taken: list[Worker] = []
    monkeypatch.setattr(Worker, "give", giving)
    monkeypatch.setattr(Worker, "take", taking)
    records = encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 3, tmp_path / "trace")
    assert {record.unit for record in records} == set(range(40))
    assert max(given.values()) == AHEAD


def test_a_unit_that_is_encoded_alone_leaves_no_worker_behind(
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill_the_first(launched: list[int]) -> None:
        if len(launched) <= DEATHS:
            os.kill(launched[-1], signal.SIGKILL)

    started = after_each_launch(monkeypatch, kill_the_first)
    records = encode_units(jobs[:1], tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace")
    assert next(records).unit == 0
    assert len(started) == DEATHS + 1
    assert not multiprocessing.active_children()
    assert list(records) == []


def test_workers_that_are_killed_as_they_start_are_an_error(
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_each_launch(monkeypatch, lambda launched: os.kill(launched[-1], signal.SIGKILL))
    (tmp_path / "trace").write_text("what another run was at")
    with pytest.raises(StorageError, match="died 3 times, now at the start of the worker"):
        list(encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace"))


def test_a_tokenizer_that_workers_cannot_read_is_named(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("no tokenizer")
    with pytest.raises(BadDataError, match=r"t\.json"):
        list(encode_units(jobs, tmp_path / "t.json", tmp_path / "units", 2, tmp_path / "trace"))


@pytest.fixture
def worker(jobs: list[Job], tmp_path: Path) -> Iterator[Worker]:
    """One that has encoded a unit, and waits for the next."""
    worker = Worker(tmp_path / "t.json", tmp_path / "units")
    worker.start()
    try:
        worker.give(jobs[0])
        worker.take()
        yield worker
    finally:
        worker.kill()


def test_a_request_to_stop_is_heard_again_once_a_worker_has_started(worker: Worker) -> None:
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)


def test_a_worker_hears_sigterm_only(worker: Worker) -> None:
    """multiprocessing ends by it, and waits for, what is left when an interpreter exits."""
    process = worker._process
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_request_to_stop_waits_for_a_worker_that_starts(
    elsewhere: bool, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """elsewhere: in another thread, which no handler runs in, and which may set none."""
    launch = Popen._launch  # type: ignore[attr-defined]
    started: list[bool] = []

    def launch_and_ask(self: Popen, process: object) -> None:
        if not elsewhere:
            signal.raise_signal(signal.SIGTERM)
        launch(self, process)
        started.append(True)

    monkeypatch.setattr(Popen, "_launch", launch_and_ask)
    heard: list[list[bool]] = []
    handlers = [lambda *_: heard.append([*started]), signal.default_int_handler]
    numbers = [signal.SIGTERM, signal.SIGINT]
    before = [signal.signal(*pair) for pair in zip(numbers, handlers, strict=True)]
    worker = Worker(tmp_path / "t.json", tmp_path / "units")
    try:
        if elsewhere:
            thread = threading.Thread(target=worker.start)
            thread.start()
            thread.join()
        else:
            worker.start()
        assert worker._process.is_alive()
        assert [signal.getsignal(number) for number in numbers] == handlers
    finally:
        worker.kill()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert heard == ([] if elsewhere else [[True]])
    assert worker.pipe.closed


def of_a_process_of_its_own(code: str, tmp_path: Path) -> subprocess.Popen[str]:
    """One that has started `worker`, runs `code`, and prints what that prints."""
    begin = (
        "import sys; from pathlib import Path; from prepare.units.worker import Worker\n"
        "worker = Worker(Path(sys.argv[1]), Path(sys.argv[2])); worker.start()\n"
        "process = Path(f'/proc/{worker._process.pid}')\n"
    )
    line = [sys.executable, "-c", begin + code, str(tmp_path / "t.json"), str(tmp_path / "units")]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=CLONE)


def test_the_first_worker_does_not_hear_ctrl_c(jobs: list[Job], tmp_path: Path) -> None:
    """multiprocessing's first start of all starts its resource tracker, which unblocks SIGINT."""
    code = "print((process / 'status').read_text()); worker.kill()"
    said, _ = of_a_process_of_its_own(code, tmp_path).communicate(timeout=60)
    blocked = int(said.partition("SigBlk:")[2].split()[0], 16)
    assert blocked >> (signal.SIGINT - 1) & 1


def test_a_worker_that_is_left_ends_with_its_interpreter(jobs: list[Job], tmp_path: Path) -> None:
    said, _ = of_a_process_of_its_own("print(process)", tmp_path).communicate(timeout=60)
    assert not Path(said.strip()).exists()


def test_a_busy_worker_ends_with_a_parent_that_is_killed(jobs: list[Job], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.jsonl")  # a text that does not come to its end
    code = (
        "from tests.prepare.units.test_pool import job; import time\n"
        "unit = job(0, Path(sys.argv[1]).parent / 'endless.jsonl'); worker.give(unit)\n"
        "print(process, flush=True); time.sleep(60)"
    )
    parent = of_a_process_of_its_own(code, tmp_path)
    assert parent.stdout is not None
    worker = Path(parent.stdout.readline().strip())
    with (tmp_path / "endless.jsonl").open("w"):  # waits for the worker to read
        parent.kill()
        parent.wait()
        until = time.monotonic() + 30
        while worker.exists() and (worker / "stat").read_text().split()[2] != "Z":
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_worker_without_a_pipe_has_nothing_more_to_do(worker: Worker) -> None:
    worker.pipe.close()
    worker._process.join(60)
    assert worker._process.exitcode == 0


def test_a_worker_that_fails_outside_of_a_unit_has_died(worker: Worker) -> None:
    worker.pipe.send_bytes(b"no job")
    assert worker.pipe.poll(60)
    with pytest.raises(WorkerDiedError):
        worker.take()


class Clumsy(Exception):
    """It cannot be made of what it says."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (BadDataError("a.txt: odd"), BadDataError),
        (OSError(28, "full"), OSError),
        (Clumsy("a", "bug"), RuntimeError),
    ],
)
def test_what_goes_wrong_in_a_worker_says_where(
    error: Exception,
    arrives: type[Exception],
) -> None:
    try:
        raise error
    except Exception as raised:
        sent = ForkingPickler.loads(ForkingPickler.dumps(_portable(raised)))
    assert type(sent) is arrives
    told = "".join(traceback.format_exception(sent))
    assert str(error) in told
    assert "test_what_goes_wrong_in_a_worker_says_where" in told


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
