"""A campaign, not a test: runs of `nanogpt prepare`, killed at random moments and continued,
compared in the end.

    python tests/faults/kill_prepare.py --runs 20 --megabytes 30 --seed 1

Each run is killed (SIGKILL to its whole session) one to four times, as one process with two workers
or as two ranks of torchrun, and then left to finish, again as either. All its files have to equal
those of an undisturbed run by sha256, and what a run redoes is at most a unit for each worker.
Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.conftest import command, hashes

WORKERS = 2


def write_source(path: Path, size: int) -> None:
    texts = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        texts.append(json.dumps({"text": text}) + "\n")
        size -= len(text)
        if size <= 0:
            break
    path.write_text("".join(texts))


def start(folder: Path, out: str, ranks: int) -> "subprocess.Popen[bytes]":
    line = ["prepare", "text", "--source", "a.jsonl", "--tokenizer", "gpt2", "--out", out]
    line += [] if ranks else ["--workers", str(WORKERS)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        command(*line, ranks=ranks), cwd=folder, start_new_session=True, **quiet
    )  # type: ignore[call-overload,no-any-return]


def records(folder: Path) -> dict[str, int]:
    """The units that are done, with the time of their record."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (folder / ".prepare" / "units").glob("[0-9]*.json")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    choose = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "a.jsonl", given.megabytes * 10**6)
        started = time.monotonic()
        if start(folder, "whole", 0).wait():
            sys.exit("the undisturbed run failed")
        seconds = time.monotonic() - started
        whole = hashes(folder / "whole")
        figures = {
            "runs": given.runs,
            "seed": given.seed,
            "kills": 0,
            "in_time": 0,
            "equal": 0,
            "kept_units": 0,
        }
        for number in range(given.runs):
            out = folder / f"out{number}"
            for _ in range(choose.randint(1, 4)):
                before = records(out)
                ranks = choose.choice([0, 2])
                process = start(folder, out.name, ranks)
                time.sleep(choose.uniform(0.3, seconds * (1.6 if ranks else 0.9)))
                figures["kills"] += 1
                figures["in_time"] += process.poll() is None
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                # ranks, which torchrun has given sessions of their own, notice that it is gone
                time.sleep(1)
                if (out / "manifest.json").exists():
                    break
                after = records(out)
                assert all(after.get(unit) == stamp for unit, stamp in before.items()), (
                    "a unit was done twice"
                )
                figures["kept_units"] += len(before)
            if start(folder, out.name, choose.choice([0, 2])).wait():
                sys.exit(f"run {number} did not finish; seed {given.seed}")
            figures["equal"] += hashes(out) == whole
    print(json.dumps(figures))
    sys.exit(figures["equal"] != given.runs)


if __name__ == "__main__":
    main()
