"""Change a line of a module that promises hang on, see whether its tests notice, and so on.

A table on standard output, and the changes that no test has noticed. Returns 1 where fewer than
85 % of them are noticed.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.modules import MODULES
from tests.mutants.mutate import Mutant, mutants
from tests.seeded.forked import Calls, Pytest
from tests.seeded.tree import CLONE, copy_tree

GOAL = 0.85
JOBS = 1
MUTANT_S = 60.0  # of tests, as long as they take alone, for a mutant
KEPT = CLONE / "build" / "mutants.json"  # how long the tests take, and what they call
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True)
class Known:
    """Of a test: its seconds alone, and the functions that it calls in its own process."""

    seconds: float
    calls: Calls


@dataclass(frozen=True)
class Attempt:
    """A mutant of a module."""

    module: str
    mutant: Mutant
    line: str  # the source's

    def __str__(self) -> str:
        return f"{self.module}:{self.mutant.line}  {self.mutant.what}"


@dataclass(frozen=True)
class Verdict:
    """What became of it. by: the test that has noticed; None: none of `tests` tests did.

    late: whether it was noticed only since that took too long.
    """

    attempt: Attempt
    by: str | None
    late: bool
    tests: int
    seconds: float


def attempts(module: str) -> list[Attempt]:
    """All of a module, but for those that change nothing."""
    source = (CLONE / module).read_bytes()
    lines = source.decode().splitlines()
    equal = {(each["line"], each["change"]) for each in equivalent() if each["file"] == module}
    found = [Attempt(module, each, lines[each.line - 1].strip()) for each in mutants(source)]
    return [each for each in found if (each.line, each.mutant.what) not in equal]


def equivalent() -> list[dict[str, str]]:
    """The changes that change nothing: file, line (its text), change, why."""
    return list(tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("mutant", []))


def order(attempt: Attempt, known: dict[str, Known]) -> list[str]:
    """The tests to run: the module's own, then those that call what was changed, or the module.

    A test may call it in another process, which is not known. The fastest of each kind first; no
    more of them than take MUTANT_S.
    """
    files, module = MODULES[attempt.module], attempt.module
    place = (module, attempt.mutant.function or 0)

    def rank(name: str) -> tuple[bool, bool, bool, float]:
        calls, is_own = known[name].calls, f"/test_{Path(module).name}::" in name
        called = place in calls, module in {file for file, _ in calls}
        return not is_own, not called[0], not called[1], known[name].seconds

    mine = sorted((name for name in known if name.partition("::")[0] in files), key=rank)
    chosen, seconds = [], 0.0
    for name in mine:
        seconds += known[name].seconds
        if chosen and seconds > MUTANT_S:
            break
        chosen.append(name)
    return chosen


class Trial:
    """A copy of the tree in which mutants are tried, one after the other; close() it at the end."""

    def __init__(self, folder: Path) -> None:
        self.tree = copy_tree(folder / "tree")
        self.pytest = Pytest(self.tree, folder / "run")
        self.writes = 0

    def measure(self, file: str) -> dict[str, Known]:
        """What is known of a file's tests. One that fails as it is is told of and left out."""
        done = self.pytest.run([file], limit_s=1200, profile=True)
        if done.code not in (0, 5):
            print(f"{file} fails as it is: {done.failed or done.output[-2000:]}", file=sys.stderr)
        return {
            name: Known(seconds, {call for call in done.calls[name] if call[0] in MODULES})
            for name, (how, seconds) in done.tests.items()
            if how == "passed"
        }

    def test(self, attempt: Attempt, known: dict[str, Known]) -> Verdict:
        """Try one mutant."""
        chosen = order(attempt, known)
        source = (CLONE / attempt.module).read_bytes()
        self._write(attempt.module, attempt.mutant.of(source))
        try:
            files = list(dict.fromkeys(name.partition("::")[0] for name in chosen))
            longest = 60 + 5 * max(known[name].seconds for name in chosen)
            done = self.pytest.run(
                [*files, "-x", f"--timeout={longest:.0f}", "--hypothesis-seed=0"],
                limit_s=120 + 3 * sum(known[name].seconds for name in chosen),
                order=chosen,
            )
        finally:
            self._write(attempt.module, source)
        late = done.code is None or "Failed: Timeout" in done.output
        by = next(iter(done.failed), None)
        if by is None and done.code != 0:
            by = "no test" if done.code is None else f"pytest, which returned {done.code}"
        return Verdict(attempt, by, late, len(chosen), done.seconds)

    def _write(self, module: str, source: bytes) -> None:
        """With a time of its own: what Python has compiled of it before is out of date."""
        self.writes += 1
        (self.tree / module).write_bytes(source)
        os.utime(self.tree / module, (self.writes, self.writes))

    def close(self) -> None:
        """End its process."""
        self.pytest.close()


def all_known(trials: list[Trial], files: list[str]) -> dict[str, Known]:
    """What is known of the tests in `files`; of a file that is as it was, as it was measured."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    digests = {file: hashlib.sha256((CLONE / file).read_bytes()).hexdigest() for file in files}
    missing = iter([file for file in files if kept.get(file, {}).get("sha256") != digests[file]])

    def measure(trial: Trial) -> None:
        for file in missing:
            found = trial.measure(file)
            tests = {name: [one.seconds, sorted(one.calls)] for name, one in found.items()}
            kept[file] = {"sha256": digests[file], "tests": tests}
            KEPT.write_text(json.dumps(kept))
            print(f"{file}: {sum(one.seconds for one in found.values()):.0f} s", file=sys.stderr)

    KEPT.parent.mkdir(exist_ok=True)
    in_threads(measure, trials)
    return {
        name: Known(seconds, set(map(tuple, calls)))
        for file in files
        for name, (seconds, calls) in kept[file]["tests"].items()
    }


def in_threads(work: Callable[[Trial], None], trials: list[Trial]) -> None:
    """work(trial) for each, all at once. Raises what the first has raised."""
    with ThreadPoolExecutor(len(trials)) as pool:
        for done in [pool.submit(work, trial) for trial in trials]:
            done.result()


def sampled(modules: list[str], line: str, seed: int, sample: int | None) -> list[Attempt]:
    """Mutants of all modules together in an order that is drawn; `sample`: so many of them.

    line: the one whose mutants are meant, "": all.
    """
    every = [attempt for module in modules for attempt in attempts(module)]
    every = [attempt for attempt in every if line in ("", str(attempt.mutant.line))]
    random.Random(seed).shuffle(every)
    return every[:sample]


def try_all(
    trials: list[Trial],
    chosen: list[Attempt],
    known: dict[str, Known],
    deadline: float,
) -> list[Verdict]:
    """The verdicts on those that are tried until the deadline."""
    waiting, verdicts = iter(chosen), []

    def work(trial: Trial) -> None:
        for attempt in waiting:
            if time.monotonic() > deadline:
                return
            verdicts.append(verdict := trial.test(attempt, known))
            print(
                f"{len(verdicts):4} of {len(chosen)} {verdict.seconds:5.1f} s  {attempt}  "
                f"{verdict.by or 'SURVIVED'}{' TOO LATE' * verdict.late}",
                file=sys.stderr,
                flush=True,
            )

    in_threads(work, trials)
    return verdicts


def report(verdicts: list[Verdict]) -> None:
    """Print the table, and who survived."""
    titles = f"{'mutants':>7} {'tried':>5} {'killed':>6} {'late':>4} {'survived':>8} {'%':>4}"
    print(f"{'module':44} {titles}")
    for module in MODULES:
        mine = [each for each in verdicts if each.attempt.module == module]
        if mine:
            _row(module, len(attempts(module)), mine)
    _row("all", sum(len(attempts(module)) for module in MODULES), verdicts)
    print("\nsurvived:")
    for verdict in sorted(verdicts, key=lambda each: str(each.attempt)):
        if verdict.by is None:
            print(f"  {verdict.attempt}  ({verdict.tests} tests)")


def _row(name: str, mutants: int, verdicts: list[Verdict]) -> None:
    killed = sum(each.by is not None for each in verdicts)
    tried, late = len(verdicts), sum(each.late for each in verdicts)
    share = f"{100 * killed / tried:4.0f}" if tried else ""
    print(f"{name:44} {mutants:7,} {tried:5} {killed:6} {late:4} {tried - killed:8} {share}")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they are drawn")
    parser.add_argument("--minutes", type=float, default=55.0, help="after which no other is begun")
    parser.add_argument("--sample", type=int, metavar="N", help="of N mutants; none: as many as go")
    parser.add_argument("--only", metavar="PATH[:LINE]", default="", help="modules below PATH")
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    place, _, line = given.only.partition(":")
    modules = [module for module in MODULES if module.startswith(place)]
    if not modules:
        parser.error(f"no module of tests/mutants/modules.py begins with {given.only}")
    files = list(dict.fromkeys(file for module in modules for file in MODULES[module]))
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        trials = [Trial(Path(name) / str(job)) for job in range(JOBS)]
        known = all_known(trials, files)
        chosen = sampled(modules, line, given.seed, given.sample)
        verdicts = try_all(trials, chosen, known, deadline)
        for trial in trials:
            trial.close()
    report(verdicts)
    killed = sum(each.by is not None for each in verdicts)
    return 0 if killed >= GOAL * len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
