"""Put each bug of tests/seeded/*.patch into a copy of the tree, and see its tests go red.

A table on standard output; returns 1 where a test stays green, or a patch no longer applies. A
patch begins with what the bug does, and names the tests, each on a line "Red: FILE::TEST".
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.seeded.forked import Pytest
from tests.seeded.tree import copy_tree, git

FOLDER = Path(__file__).parent
RED = re.compile(r"^Red: (\S+)$", re.MULTILINE)
LIMIT_S = 240


@dataclass(frozen=True)
class Bug:
    """A patch, what it says of itself, and the tests that must notice it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> int:
        return int(self.name.partition("-")[0])

    @property
    def head(self) -> str:
        """The text before the changes."""
        return self.path.read_text(encoding="utf-8").partition("diff --git")[0]

    @property
    def tests(self) -> list[str]:
        return RED.findall(self.head)


def bugs() -> list[Bug]:
    """All of them, by number."""
    return [Bug(path) for path in sorted(FOLDER.glob("[0-9][0-9]-*.patch"))]


def verdict(bug: Bug, pytest: Pytest, seed: int) -> tuple[str, float]:
    """What became of a bug's tests, "red" where all is well, and the seconds."""
    try:
        git("apply", str(bug.path), tree=pytest.tree)
    except subprocess.CalledProcessError as error:
        return f"DOES NOT APPLY: {error.stderr.splitlines()[0]}", 0.0
    try:
        done = pytest.run(arguments(bug.tests, seed), LIMIT_S)
    finally:
        git("apply", "--reverse", str(bug.path), tree=pytest.tree)
    return how(done.code, done.failed, bug.tests), done.seconds


def arguments(tests: list[str], seed: int) -> list[str]:
    """Those of pytest: also of what is thorough."""
    return [*dict.fromkeys(tests), "-m", "", f"--hypothesis-seed={seed}"]


def how(code: int | None, failed: list[str], tests: list[str]) -> str:
    """In a word, how a run of `tests` with a bug ended."""
    if code is None:
        return "red"  # a test that hangs does not pass
    if code not in (0, 1):
        return f"NOT RUN: pytest returned {code}"
    green = [test for test in tests if not any(name.startswith(test) for name in failed)]
    return f"GREEN: {', '.join(green)}" if green else "red"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeded.run", description=__doc__)
    parser.add_argument("--only", type=int, metavar="N", help="bug number N alone")
    parser.add_argument("--seed", type=int, default=0, help="of what hypothesis draws")
    parser.add_argument("--verbose", action="store_true", help="print the end of each run")
    given = parser.parse_args()
    chosen = [bug for bug in bugs() if given.only in (None, bug.number)]
    with tempfile.TemporaryDirectory(prefix="seeded-") as name:
        pytest = Pytest(copy_tree(Path(name) / "tree"), Path(name) / "run")
        every = [test for bug in chosen for test in bug.tests]
        before = pytest.run(arguments(every, given.seed), 60 + LIMIT_S * len(chosen) / 4)
        caught = before.code == 0
        print(f"without a bug: {'green' if caught else before.output[-3000:]}", flush=True)
        print(f"{'bug':32} {'verdict':7} {'s':>5}  test")
        for bug in chosen:
            found, seconds = verdict(bug, pytest, given.seed)
            caught = caught and found == "red"
            print(f"{bug.name:32} {found:7} {seconds:5.1f}  {', '.join(bug.tests)}", flush=True)
            if given.verbose:
                print((pytest.folder / "output").read_text()[-3000:])
        pytest.close()
    return 0 if caught else 1


if __name__ == "__main__":
    sys.exit(main())
