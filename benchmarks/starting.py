"""How soon the command answers: `nanogpt --help` beside `litgpt --help`, from start to exit.

    python -m venv peer && peer/bin/pip install litgpt
    python benchmarks/starting.py --against-litgpt peer/bin/litgpt          # --rounds 5

Whole processes in turns. Also, by itself, the time in which `nanogpt train` makes its first update.
One JSON object.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from turns import CLONE, alone, in_turns, machine, medians, ratio, report

# As most people have it: what is imported is compiled once and kept.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
TINY = [
    "--n-layer",
    "2",
    "--n-head",
    "2",
    "--n-embd",
    "32",
    "--block-size",
    "32",
    "--batch-size",
    "4",
]
TINY += ["--gradient-accumulation-steps", "1", "--max-iters", "2000", "--device", "cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-litgpt", type=Path, required=True, help="the command litgpt")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ours = [sys.executable, str(CLONE / "nanogpt")]
    cases = {
        "nanogpt --help": seconds([*ours, "--help"]),
        "litgpt --help": seconds([str(given.against_litgpt), "--help"]),
    }
    figures = in_turns(cases, given.rounds)
    row = {
        "what": "nanogpt --help",
        "beside": "litgpt --help (how many times faster)",
        "reach": 15.0,
    }
    rows = [
        row
        | ratio(figures["litgpt --help"], figures["nanogpt --help"])
        | {"seconds": medians(figures)}
    ]
    row = {"what": "nanogpt --help, seconds", "beside": "", "reach": 0.35, "at_most": True}
    rows.append(row | alone(figures["nanogpt --help"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 2000)
        prepare = [
            *ours,
            "prepare",
            "text",
            "--source",
            "text.txt",
            "--out",
            "data",
            "--tokenizer",
            "byte",
        ]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        torch = in_turns(
            {"import torch": seconds([sys.executable, "-c", "import torch"])}, given.rounds
        )
        first = in_turns(
            {"train": lambda: first_update([*ours, "train", *TINY], folder)}, given.rounds
        )
    rows.append(
        {"what": "nanogpt train to its first update, seconds", "beside": "import torch alone"}
        | ratio(first["train"], torch["import torch"])
        | {"seconds": medians(first | torch)}
    )
    report(rows, machine=machine("torch", "typer"))


def seconds(line: list[str]) -> Callable[[], float]:
    """From the start of a command to its end."""

    def measure() -> float:
        started = time.perf_counter()
        subprocess.run(line, check=True, capture_output=True, env=ENVIRONMENT)
        return time.perf_counter() - started

    return measure


def first_update(line: list[str], folder: Path) -> float:
    """Until the log tells of step 1; then the command is stopped, and what it wrote is removed."""
    started = time.perf_counter()
    with subprocess.Popen(
        [*line, "--dataset", "data", "--out-dir", "run"],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        took = next(
            time.perf_counter() - started for told in process.stderr if told.startswith("step 1/")
        )
        process.kill()
    shutil.rmtree(folder / "run")
    return took


if __name__ == "__main__":
    main()
