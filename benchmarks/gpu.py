"""One GPU: training, sampling and saving as they are, and with one choice changed at a time.

    python benchmarks/gpu.py                                   # --minutes 20 --out FILE.json
    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/gpu.py --against-nanogpt nanoGPT         # its own bench beside ours

Each case is a process of its own with a time limit; one that fails is told of, and the others go
on. The most telling ones come first: what does not fit into --minutes is left out, and named.
Figures are those of `nanogpt bench … --json`; idle: the part of a step in which no phase had work
for the GPU. Everything goes into one JSON file, written anew after each case; a table to stdout.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE))

from tests.gpu.machine import SIMULATED, about, results_file  # noqa: E402

LIMIT_S = 420  # of a case: 1558m is compiled for two minutes
# In a small size, to try the script itself.
SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--block-size", "32"]
SMALL += ["--vocab-size", "320"]
SMALL_BATCH = ["--batch-size", "2", "--gradient-accumulation-steps", "2"]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One process. run: its figures. beside: the case that it differs from in one choice."""

    name: str
    run: Callable[[float], Figures]
    beside: str | None = None


@dataclass
class Results:
    """What the JSON file holds."""

    about: Figures
    cases: dict[str, Figures] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="begin no case after this long")
    parser.add_argument("--out", type=Path, help="the JSON file; else in benchmarks/results")
    parser.add_argument("--against-nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--small", action="store_true", help="in a small size, to try the script")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here")
    results = Results(about())
    out = given.out or results_file("gpu-bench", results.about["device"])
    deadline = time.monotonic() + 60 * given.minutes
    for case in cases(given.against_nanogpt, given.small):
        if time.monotonic() > deadline:
            results.left_out.append(case.name)
        else:
            results.cases[case.name] = measure(case, results)
            print(row(case.name, results.cases[case.name]), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(vars(results), indent=1) + "\n", encoding="utf-8")
    if results.left_out:
        print(f"no time was left for: {', '.join(results.left_out)}")
    print(f"figures: {out}")


def measure(case: Case, results: Results) -> Figures:
    """The figures of a case, or why there are none; beside another one as a ratio of speeds."""
    begun = time.monotonic()
    try:
        found = case.run(LIMIT_S)
    except (RuntimeError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        found = {"failed": " ".join(str(error).split())[-600:]}
    other = results.cases.get(case.beside or "", {})
    for speed in ("tokens_per_second", "save_gb_per_second"):
        if found.get(speed) and other.get(speed):
            found |= {"beside": case.beside, "ratio": found[speed] / other[speed]}
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def cases(peer: Path | None, small: bool) -> Iterator[Case]:
    """All cases, the most telling ones first."""

    def training(name: str, *line: object, beside: str | None = None, **variables: str) -> Case:
        size = [*SMALL, *SMALL_BATCH] if small else []
        words = ["bench", "train", *line, *size, "--updates", "3" if small else "20"]
        return Case(name, lambda limit: bench(words, limit, variables), beside)

    m124 = ["gpt2-124m", "--dtype", "bfloat16"]
    as_given = "124m, micro-batch 12"
    yield training("124m", *m124)
    yield training(as_given, *m124, "--no-join-micro-batches", beside="124m")
    yield Case("nanoGPT, 124m, micro-batch 12", lambda limit: nanogpt(peer, limit))
    for size in (32, 60):
        batch = ["--batch-size", size, "--gradient-accumulation-steps", 480 // size]
        line = [*m124, *batch, "--no-join-micro-batches"]
        yield training(f"124m, micro-batch {size}", *line, beside=as_given)
    yield training("shakespeare-char", "shakespeare-char")
    yield sampling("124m, 1 row, bfloat16", small, "--dtype", "bfloat16")
    yield training("350m", "gpt2-350m", "--dtype", "bfloat16")
    yield training("1558m", "gpt2-1558m", "--dtype", "bfloat16")
    documents = ["--intra-document", "--eot-id", "256"]
    yield training("124m within documents", *m124, *documents, beside="124m")
    yield from toggles(training, m124)
    yield from other_sampling(small)
    yield saving(small)


def toggles(training: Callable[..., Case], m124: list[str]) -> Iterator[Case]:
    """One choice changed at a time."""
    plain = "124m"
    yield training("loss whole", *m124, "--no-chunked-loss", beside=plain)
    yield training("loss in chunks", *m124, "--chunked-loss", beside=plain)
    yield training("not compiled", *m124, "--no-compile", beside=plain)
    yield training("fsdp of one", *m124, "--strategy", "fsdp", beside=plain)
    segments = {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}
    segments["PYTORCH_CUDA_ALLOC_CONF"] = segments["PYTORCH_ALLOC_CONF"]
    yield training("segments that do not expand", *m124, beside=plain, **segments)
    for mode in ("reduce-overhead", "max-autotune-no-cudagraphs"):
        yield training(f"124m, {mode}", *m124, "--compile-mode", mode, beside=plain)
    graphs = ["shakespeare-char", "--compile-mode", "reduce-overhead"]
    yield training("shakespeare-char, reduce-overhead", *graphs, beside="shakespeare-char")
    for mode in ("selective", "full"):
        line = [*m124, "--activation-checkpointing", mode]
        yield training(f"{mode} checkpointing", *line, beside=plain)
    for size in (10, 100):
        line = [*m124, "--strategy", "ddp", "--bucket-cap-mb", size]
        yield training(f"ddp of one, buckets of {size} MB", *line, beside=plain)
    yield training("1558m, fp8", "gpt2-1558m", "--dtype", "bfloat16", "--fp8", beside="1558m")
    yield training("124m, fp8", *m124, "--fp8", beside=plain)
    yield training("124m, deterministic", *m124, "--deterministic", beside=plain)
    yield training("124m, tf32", "gpt2-124m", "--dtype", "tf32", beside=plain)
    yield training("124m, float32", "gpt2-124m", "--dtype", "float32", beside=plain)


def sampling(name: str, small: bool, *line: object, beside: str | None = None) -> Case:
    """Text from random weights."""
    size = [*SMALL, "--max-new-tokens", "4", "--rounds", "1"] if small else []
    words = ["bench", "sample", "gpt2-124m", *line, *size]
    return Case(f"sample {name}", lambda limit: bench(words, limit, {}), beside)


def other_sampling(small: bool) -> Iterator[Case]:
    """More rows, int8, and no CUDA graphs."""
    one = "sample 124m, 1 row, bfloat16"
    eager = ["--dtype", "bfloat16", "--no-cuda-graphs"]
    yield sampling("124m, 1 row, without CUDA graphs", small, *eager, beside=one)
    yield sampling("124m, 1 row, int8", small, "--dtype", "int8", beside=one)
    for kind in ("bfloat16", "int8"):
        line = ["--dtype", kind, "--num-samples", "8"]
        yield sampling(f"124m, 8 rows, {kind}", small, *line, beside=one)


def saving(small: bool) -> Case:
    """Checkpoints of 124m in a temporary folder."""

    def run(limit: float) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            size = SMALL if small else []
            return bench(["bench", "io", "gpt2-124m", *size, "--folder", folder], limit, {})

    return Case("save 124m", run)


def bench(words: list[object], limit: float, variables: dict[str, str]) -> Figures:
    """What `nanogpt bench …` says of itself, and how idle the GPU was."""
    line = [sys.executable, str(CLONE / "nanogpt"), *map(str, words), "--device", "cuda", "--json"]
    found = json.loads(said(line, limit, CLONE, variables))
    if "phases" in found:
        at_work = sum(ms for name, ms in found["phases"].items() if name not in ("data", "rest"))
        found["idle"] = max(0.0, 1 - at_work / found["ms_per_update"])
    return found


def said(line: list[str], limit: float, folder: Path, variables: dict[str, str]) -> str:
    """What a command writes to standard output. Raises RuntimeError where it fails."""
    done = subprocess.run(
        line,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def nanogpt(clone: Path | None, limit: float) -> Figures:
    """nanoGPT's bench.py, 124m at micro-batch 12: the time of an iteration, without data."""
    if clone is None:
        return {"failed": "give --against-nanogpt a clone of nanoGPT"}
    line = [sys.executable, "bench.py", "--real_data=False", "--batch_size=12"]
    told = said(line, limit, clone.resolve(), {})
    times = [float(ms) for ms in re.findall(r"time per iteration: ([\d.]+)ms", told)]
    if not times:
        raise RuntimeError(f"no time in what it says: {told[-300:]}")
    ms = statistics.median(times)
    return {"tokens_per_second": 12 * 1024 / ms * 1e3, "ms_per_update": ms}


def row(name: str, found: Figures) -> str:
    """A case on a line of the table."""
    if "failed" in found:
        return f"{name:<42} failed: {found['failed'][:100]}"
    parts = [f"{name:<42}"]
    if "tokens_per_second" in found:
        parts.append(f"{found['tokens_per_second']:>12,.0f} tokens/s")
    if "mfu" in found:
        parts.append(f"mfu {found['mfu']:6.1%}")
    if "memory_bytes" in found:
        parts.append(f"{found['memory_bytes'] / 1e9:6.2f} GB")
    if "first_step_seconds" in found:
        parts.append(f"first step {found['first_step_seconds']:.0f} s")
    if "idle" in found:
        parts.append(f"idle {found['idle']:.0%}")
    if "save_gb_per_second" in found:
        parts.append(f"save {found['save_gb_per_second']:.2f} GB/s")
    if "ratio" in found:
        parts.append(f"{found['ratio']:.2f} × {found['beside']}")
    return "  ".join(parts) + ("  (simulated)" if SIMULATED else "")


if __name__ == "__main__":
    main()
