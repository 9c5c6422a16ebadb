"""The time that `nanogpt plan` predicts, from a bench of a minute, beside that of the training.

    python benchmarks/plan_time.py                       # six minutes; --seconds 10 --only small

Three trainings of some hundred steps, with evaluations and saves, on one and two ranks of this CPU.
Of each: `nanogpt bench train --json` for --seconds, `bench io` for what the disk gives, `nanogpt
plan --bench`, and then the very line that it says to type. Real is from the last line before the
first step to the end of the process. Prints one JSON object, and a table on stderr.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import CLONE, alone, machine, report

NANOGPT = [sys.executable, str(CLONE / "nanogpt")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
GOAL = 0.1
BEGINS = "starting at step 0"
Settings = dict[str, Any]

SMALL: Settings = {"batch_size": 4, "gradient_accumulation_steps": 2, "max_iters": 1000}
LARGE: Settings = {
    **{"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 8},
    **{"gradient_accumulation_steps": 1, "max_iters": 250},
}
# name → ranks, what is trained, how often it is evaluated
CASES: dict[str, tuple[int, Settings, Settings]] = {
    "small, 1 rank": (1, SMALL, {"eval_interval": 250, "eval_iters": 50}),
    "small, 2 ranks": (2, SMALL, {"eval_interval": 250, "eval_iters": 50}),
    "large, 1 rank": (1, LARGE, {"eval_interval": 100, "eval_iters": 5}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each bench")
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--steps", type=int, help="in place of each training's own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nanogpt(folder, "prepare", "python-stdlib")
        found = {
            case: measured(folder, case, given.seconds, given.steps)
            for case in CASES
            if given.only in case
        }
    for case, row in found.items():
        print(
            f"{case:<16}{row['predicted']:>9.1f} s predicted {row['real']:>9.1f} s real "
            f"{row['predicted'] / row['real'] - 1:>+8.1%}",
            file=sys.stderr,
        )
    rows = [
        {
            "what": f"predicted time, {case}",
            "beside": "the training's (within 10 %)",
            "reach": None,
            "within": abs(row["predicted"] / row["real"] - 1) <= GOAL,
            **alone([row["predicted"] / row["real"]]),
            "seconds": row,
        }
        for case, row in found.items()
    ]
    report(rows, bench_seconds=given.seconds, **machine("torch"))


def measured(folder: Path, case: str, seconds: float, steps: int | None) -> dict[str, Any]:
    """Predicted and real seconds of one training, with what the prediction is made of."""
    ranks, trained, evaluated = CASES[case]
    trained = {**trained, **({"max_iters": steps} if steps else {})}
    flags = as_flags(trained)
    bench, io = folder / "bench.json", ["bench", "io", "quickstart", *shape(flags)]
    typed = ["bench", "train", "quickstart", *flags, "--device", "cpu", "--json"]
    typed += ["--seconds", str(seconds), "--updates", str(10**6)]
    bench.write_text(nanogpt(folder, *typed, ranks=ranks))
    disk = json.loads(nanogpt(folder, *io, "--device", "cpu", "--json"))["save_gb_per_second"]
    place = ["--gpus", str(ranks), "--device", "cpu", "--bench", str(bench)]
    plan = ["plan", "quickstart", *flags, *as_flags(evaluated), *place, "--disk", f"{disk}GB/s"]
    plan += ["--out-dir", str(folder / "out" / case.replace(", ", "-").replace(" ", "-"))]
    planned = json.loads(nanogpt(folder, *plan, "--json"))
    times = planned["time"]
    return {
        "predicted": round(times["total_seconds"], 2),
        "real": round(timed(folder, shlex.split(planned["command"])[1:]), 2),
        "steps": round(times["steps_seconds"], 2),
        "evaluations": round(times["evaluations"] * times["evaluation_seconds"], 2),
        "saves": round(times["save_waiting_seconds"], 2),
        "disk_gb_per_second": round(disk, 3),
    }


def as_flags(settings: Settings) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def shape(flags: list[str]) -> list[str]:
    """Those of the model, which is all that bench io takes of them."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for pair in pairs if pair[0].startswith(("--n-", "--block")) for word in pair]


def nanogpt(folder: Path, *words: str, ranks: int = 1) -> str:
    """What `nanogpt WORDS` prints, run in `folder`."""
    line = [*TORCHRUN, str(ranks), NANOGPT[1], *words] if ranks > 1 else [*NANOGPT, *words]
    done = subprocess.run(line, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def timed(folder: Path, words: list[str]) -> float:
    """Seconds of `nanogpt WORDS` from its first step on."""
    begun = None
    with subprocess.Popen(
        [*NANOGPT, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if BEGINS in line:
                begun = time.perf_counter()
        if process.wait() or begun is None:
            raise SystemExit(f"nanogpt {shlex.join(words)} failed")
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
