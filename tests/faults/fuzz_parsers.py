"""Every reader of foreign files, called in-process with good files made wrong.

    python -m tests.faults.fuzz_parsers --minutes 30 --seed 1
    python -m tests.faults.fuzz_parsers --only shard-header --case 1000017     one case again

What must not come out: an error that is a bug (exit code 70, memory included), a process that dies,
20 s of CPU, a gigabyte, a file opened outside of the case's folder, anything run, code from data.
Prints each such case, with what makes it again. --json: cases and faults of each parser.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.parsers import data, models, runs
from tests.faults.parsers.formats import Parser, good_files
from tests.faults.parsers.sandbox import Fault, Guard, limit_this_process, run_case, run_cases

PARSERS = {parser.name: parser for parser in [*data.PARSERS, *models.PARSERS, *runs.PARSERS]}
PER_SEED = 10_000_000  # cases of a seed


def fuzz(parser: Parser, first: int, count: int, until: float) -> tuple[int, list[Fault]]:
    """`count` cases from seed `first` on: how many were made, and what was wrong."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        good = good_files(parser, Path(place) / "good")
        kept, tempfile.tempdir = tempfile.tempdir, place
        try:
            found = list(run_cases(parser, good, range(first, first + count), until))
        finally:
            tempfile.tempdir = kept
    return len(found), [fault for fault in found if fault is not None]


def replay(parser: Parser, seed: int) -> int:
    """One case in this process, with its traceback; 1 where something is wrong."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        good = good_files(parser, Path(place) / "good")
        limit_this_process()
        said = list(run_case(parser, good, seed, Guard(), show=True))[-1]
    print(json.dumps(said))
    return int(bool(said["fault"]))


def campaign(names: list[str], seed: int, minutes: float) -> dict[str, dict[str, object]]:
    """Rounds over all parsers, a few hundred cases of each in turn, until the time is over."""
    until = time.monotonic() + 60 * minutes
    report: dict[str, dict[str, object]] = {name: {"cases": 0, "faults": []} for name in names}
    first = seed * PER_SEED
    while time.monotonic() < until:
        for name in names:
            made, faults = fuzz(PARSERS[name], first, 500, until)
            entry = report[name]
            entry["cases"] = int(str(entry["cases"])) + made
            known = entry["faults"]
            assert isinstance(known, list)
            known += [str(fault) for fault in faults]
            for fault in faults:
                print(fault, file=sys.stderr, flush=True)
        first += 500
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(PARSERS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case is not None:
        return replay(PARSERS[given.only], given.case)
    report = campaign([given.only] if given.only else list(PARSERS), given.seed, given.minutes)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        for name, entry in report.items():
            print(f"{name:20} {entry['cases']:>8} cases, {len(entry['faults'])} faults")  # type: ignore[arg-type]
    return int(any(entry["faults"] for entry in report.values()))


if __name__ == "__main__":
    sys.exit(main())
