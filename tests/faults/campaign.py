"""Faults that a toolkit for long trainings has to survive, injected again and again.

    python -m tests.faults.campaign --minutes 45            # all rows, in random order
    python -m tests.faults.campaign --rows 2,17 --tries 200
    python -m tests.faults.campaign --rows 2 --seed 31 --tries 1   # one try again

A row is a kind of fault and what has to hold after it; docs/faults.md lists them. Each try runs in
a process and a folder of its own and makes all its choices from its seed, so that one that lost
something can be made again from the line that tells of it. Prints a table. --record keeps the
figures in docs/faults.md, --add adds them to those of another seed, --short does what `make test`
does.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch import processes
from tests.faults import figures
from tests.faults.figures import Figure
from tests.faults.row import Missing, Row
from tests.faults.rows import ROWS

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: whose parents have died are this process's children
LOST, MISSING = 1, 3  # how a try's process ends otherwise
ROUND_S = 4.0  # that a row has before it is another's turn
TESTS_S = 1800.0


@dataclass
class Under:
    """A try that is under way: its process, and where it writes what it finds."""

    row: Row
    seed: int
    folder: Path
    pid: int
    started: float

    @property
    def told(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.told")


@dataclass
class Campaign:
    """Tries of some rows, a few at a time, and what became of them."""

    place: Path
    seed: int
    workers: int
    tries: int | None = None  # of each row; None: as many as its goal takes
    short: bool = False
    figures: dict[int, Figure] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    running: list[Under] = field(default_factory=list)
    started: Counter[int] = field(default_factory=Counter)  # tries, by row

    def run(self, rows: Sequence[Row], seconds: float) -> None:
        """Try rows in random order until each has its tries, or the time is over."""
        deadline = time.monotonic() + seconds
        self.figures = {row.number: Figure(goal=self._wanted(row) * row.each) for row in rows}
        order = random.Random(self.seed)
        while time.monotonic() < deadline:
            open_rows = [row for row in rows if self._left(row) > 0]
            if not open_rows:
                break
            for row in order.sample(open_rows, len(open_rows)):
                if time.monotonic() < deadline:
                    self._turn(row, min(deadline, time.monotonic() + ROUND_S))
        while self.running:
            self._gather()

    def _wanted(self, row: Row) -> int:
        if row.attempt is None:
            return 0 if self.short else 1
        return row.short if self.short else self.tries or -(-row.goal // row.each)

    def _left(self, row: Row) -> int:
        if row.number in self.missing:
            return 0
        return self._wanted(row) - self.started[row.number]

    def _turn(self, row: Row, until: float) -> None:
        """At least one try of `row`, and more until then."""
        while self._left(row) > 0:
            while len(self.running) >= self.workers:
                self._gather()
            self._start(row, self.seed + self.started[row.number])
            if time.monotonic() > until:
                break

    def _start(self, row: Row, seed: int) -> None:
        self.started[row.number] += 1
        folder = self.place / f"row-{row.number}-{seed}"
        folder.mkdir()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _be_the_try(row, seed, folder)
        self.running.append(Under(row, seed, folder, pid, time.monotonic()))

    def _gather(self) -> None:
        """Note the tries that have ended, and end those that hang."""
        for each in list(self.running):
            ended, status = os.waitpid(each.pid, os.WNOHANG)
            seconds = time.monotonic() - each.started
            limit = each.row.limit_s if each.row.attempt else TESTS_S
            if not ended and seconds > limit:
                _kill_tree(each.pid)
                os.waitpid(each.pid, 0)
                self._note(each, seconds, LOST, f"no end within {limit:g} s")
            elif ended:
                told = each.told.read_text() if each.told.exists() else "it died"
                self._note(each, seconds, os.waitstatus_to_exitcode(status), told)
        time.sleep(0.002)

    def _note(self, each: Under, seconds: float, code: int, told: str) -> None:
        self.running.remove(each)
        row, figure = each.row, self.figures[each.row.number]
        if code == MISSING:
            self.missing[row.number] = told
        elif code:
            figure.tried += 1
            figure.lost += 1
            again = f"python -m tests.faults.campaign --rows {row.number} --seed {each.seed}"
            print(f"row {row.number} does not hold: {told}\n  again: {again} --tries 1")
            print(f"  its files: {each.folder}", flush=True)
        else:
            tried, measured = json.loads(told)
            figure.add(tried, seconds if measured is None else measured)
        if not code or code == MISSING:
            shutil.rmtree(each.folder, ignore_errors=True)
        each.told.unlink(missing_ok=True)


def _be_the_try(row: Row, seed: int, folder: Path) -> None:
    """One try in this child of a fork, which ends here."""
    code, told = LOST, ""
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        output = os.open(folder / ".said", os.O_WRONLY | os.O_CREAT, 0o644)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.chdir(folder)
        if row.attempt is None:
            told = json.dumps([_passed(row.tests, folder), None])
        else:
            told = json.dumps([row.each, row.attempt(random.Random(seed), folder)])
        code = 0
    except Missing as error:
        code, told = MISSING, str(error)
    except BaseException as error:
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    finally:
        _kill_tree(os.getpid(), itself=False)
        folder.with_name(f"{folder.name}.told").write_text(told)
        os._exit(code)


def _passed(tests: Sequence[str], folder: Path) -> int:
    """Run tests; how many of them passed. Raises AssertionError where one did not."""
    import pytest

    class Count:
        passed, failed = 0, list[str]()

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            self.passed += report.when == "call" and report.passed
            if report.failed:
                self.failed.append(report.nodeid)

    count, clone = Count(), Path(__file__).resolve().parents[2]
    os.chdir(clone)
    options = ["-m", "", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
    code = pytest.main([*options, *tests], plugins=[count])
    assert not count.failed, f"failed: {', '.join(count.failed)}"
    assert code == 0, f"pytest returned {code}"
    return count.passed


def _kill_tree(pid: int, itself: bool = True) -> None:
    """Kill a process with all that it has started, also those whose parents have died."""
    below = [pid]
    for each in below:
        below += processes.children(each)
    processes.send(signal.SIGKILL, reversed(below if itself else below[1:]))


def table(rows: Iterable[Row], campaign: Campaign) -> Iterator[str]:
    """The figures, a line for each row."""
    yield f"{'row':>3}  {'tried':>6} {'lost':>4}  {'worst':>7}  fault"
    for row in rows:
        figure, why = campaign.figures[row.number], campaign.missing.get(row.number)
        note = f" – not tried here: {why}" if why else ""
        worst = f"{figure.worst_s:6.2f}s" if figure.tried else "–"
        numbers = f"{row.number:>3}  {figure.tried:>6,} {figure.lost:>4}  {worst:>7}"
        yield f"{numbers}  {row.fault}{note}"


def chosen(text: str, short: bool = False) -> list[Row]:
    """The rows of --rows."""
    numbers = {row.number for row in ROWS} if text == "all" else set(map(int, text.split(",")))
    if unknown := numbers - {row.number for row in ROWS}:
        raise SystemExit(f"there is no row {sorted(unknown)[0]}: docs/faults.md lists them")
    return [row for row in ROWS if row.number in numbers and (row.short or not short)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="all", help="numbers of docs/faults.md, or all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--tries", type=int, help="of each row; as many as its goal")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--short", action="store_true", help="the few tries of `make test`")
    parser.add_argument("--record", action="store_true", help="keep the figures in docs/faults.md")
    parser.add_argument("--add", action="store_true", help="record, on top of what is kept there")
    parser.add_argument("--json", action="store_true", help="the table as one JSON object")
    options = parser.parse_args()
    if options.record and options.add:
        parser.error("--record puts new figures in place of the old, --add on top: give one")
    if options.record and options.tries == 1:
        parser.error("--record with --tries 1 would keep one try's figure: leave one of them out")
    found = run(
        chosen(options.rows, options.short),
        Campaign(Path(), options.seed, options.workers, options.tries, options.short),
        60 * options.minutes,
        options.json,
    )
    if options.record or options.add:
        figures.keep(found.figures, options.add)
    sys.exit(any(figure.lost for figure in found.figures.values()))


def run(rows: Sequence[Row], campaign: Campaign, seconds: float, as_json: bool = False) -> Campaign:
    """Run a campaign in a folder of its own, and print its table."""
    from tests import fork_server
    from tests.faults import prepared

    fork_server.load()
    campaign.place = Path(tempfile.mkdtemp(prefix="faults-"))
    prepared.PLACE = campaign.place / "prepared"
    print(f"seed {campaign.seed}, {len(rows)} rows, in {campaign.place}", file=sys.stderr)
    campaign.run(rows, seconds)
    if as_json:
        print(json.dumps({number: asdict(each) for number, each in campaign.figures.items()}))
    else:
        print("\n".join(table(rows, campaign)))
    if not any(figure.lost for figure in campaign.figures.values()):
        with suppress(OSError):
            shutil.rmtree(campaign.place)
    return campaign


if __name__ == "__main__":
    main()
