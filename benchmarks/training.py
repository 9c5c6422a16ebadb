"""Updates of `nanogpt train` beside those of nanoGPT's train.py: tokens per second, on a CPU.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/training.py --against-nanogpt nanoGPT         # --rounds 3

Whole processes in turns. nanoGPT's script is run as it is, with --device=cpu --compile=False, on
random ids; once more with its nullcontext of CPUs changed to bfloat16 autocast. Its figures are its
own log's, ours those of `nanogpt bench train`; each the median of a run's updates but the first
ones. Prints one JSON object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import CLONE, alone, in_turns, machine, medians, ratio, report

# Shapes, and how many updates a run of nanoGPT makes; reach: beside its fp32, its bf16, and of the
# matmul peak.
SHAPES: dict[str, dict[str, Any]] = {
    "6 × 384, T 256, B 16, vocabulary 65": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "vocab_size": 65,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "updates": 8,
        "reach": (2.8, 1.2, 0.30),
    },
    "12 × 768, T 256, 4 × 4 sequences, vocabulary 50304": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "vocab_size": 50304,
        "batch_size": 4,
        "gradient_accumulation_steps": 4,
        "updates": 4,
        "reach": (4.0, 1.6, 0.45),
    },
}
BLOCK_SIZE = 256
# {"vocab_size": 65} in the format that nanoGPT reads beside its data.
META_65 = b"(dVvocab_size\nI65\ns."
PLAIN = "nullcontext() if device_type == 'cpu' else"
AUTOCAST = "torch.amp.autocast('cpu', dtype=torch.bfloat16) if device_type == 'cpu' else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases = {
                "nanogpt-dist": ours(shape),
                "nanoGPT fp32": nanogpt(
                    given.against_nanogpt, Path(folder) / "fp32", shape, autocast=False
                ),
                "nanoGPT bf16 autocast": nanogpt(
                    given.against_nanogpt, Path(folder) / "bf16", shape, autocast=True
                ),
                "2 ranks × 1 thread": ours(shape, ranks=2),
            }
            figures = in_turns(cases, given.rounds, warm_up=False)
        told = {"tokens_per_second": medians(figures)}
        fp32, bf16, share = shape["reach"]
        what = f"training tokens/s, {name}"
        mfus, peaks = (
            [said[key] for said in SAID[name_of(shape)]] for key in ("mfu", "peak_tflops")
        )
        peak = statistics.median(peaks)
        for other, reach in (("nanoGPT fp32", fp32), ("nanoGPT bf16 autocast", bf16)):
            row = {"what": what, "beside": other, "reach": reach}
            rows.append(row | ratio(figures["nanogpt-dist"], figures[other]) | told)
        rows.append(
            {
                "what": f"fraction of the matmul peak, {name}",
                "beside": f"bf16, {peak:.3f} TFLOP/s",
                "reach": share,
            }
            | alone(mfus)
        )
        rows.append(
            {
                "what": f"2 DDP ranks × 1 thread, {name}",
                "beside": "1 process × 2 threads",
                "reach": 0.95,
            }
            | ratio(figures["2 ranks × 1 thread"], figures["nanogpt-dist"])
            | told
        )
    report(rows, machine=machine("torch"), matmul_tflops=peaks_of_the_machine())


SAID: dict[int, list[dict[str, Any]]] = {}  # what `nanogpt bench train` has said of each shape


def name_of(shape: dict[str, Any]) -> int:
    return shape["n_embd"]


def ours(shape: dict[str, Any], ranks: int = 1) -> Callable[[], float]:
    """Tokens per second of `nanogpt bench train`."""
    line = [sys.executable]
    if ranks > 1:
        line += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        line += ["--nproc-per-node", str(ranks)]
    line += [
        str(CLONE / "nanogpt"),
        "bench",
        "train",
        "--device",
        "cpu",
        "--json",
        "--block-size",
        str(BLOCK_SIZE),
    ]
    line += ["--updates", str(shape["updates"]), "--seconds", "600"]
    for name in (
        "n_layer",
        "n_head",
        "n_embd",
        "vocab_size",
        "batch_size",
        "gradient_accumulation_steps",
    ):
        line += [f"--{name}", str(shape[name])]

    def measure() -> float:
        said = json.loads(run(line, Path.cwd(), threads=1 if ranks > 1 else None))
        if ranks == 1:
            SAID.setdefault(name_of(shape), []).append(said)
        return said["tokens_per_second"]

    return measure


def nanogpt(
    clone: Path,
    folder: Path,
    shape: dict[str, Any],
    autocast: bool,
) -> Callable[[], float]:
    """Tokens per second by the log of nanoGPT's train.py."""
    data = folder / "data" / "random"
    data.mkdir(parents=True)
    ids = (
        np.random.default_rng(0)
        .integers(min(shape["vocab_size"], 50257), size=200_000)
        .astype(np.uint16)
    )
    for split in ("train", "val"):
        ids.tofile(data / f"{split}.bin")
    if shape["vocab_size"] == 65:
        (data / "meta.pkl").write_bytes(META_65)
    for name in ("model.py", "configurator.py", "train.py"):
        source = (clone / name).read_text()
        if name == "train.py" and autocast:
            assert PLAIN in source, "train.py is not the one that this script knows"
            source = source.replace(PLAIN, AUTOCAST)
        (folder / name).write_text(source)
    settings = {
        "device": "cpu",
        "dtype": "float32",
        "compile": False,
        "dataset": "random",
        "out_dir": "out",
        "eval_interval": 10**6,
        "eval_iters": 1,
        "log_interval": 1,
        "max_iters": shape["updates"] + 1,
        "block_size": BLOCK_SIZE,
        "dropout": 0.0,
    }
    names = ("n_layer", "n_head", "n_embd", "batch_size", "gradient_accumulation_steps")
    settings |= {name: shape[name] for name in names}
    line = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in settings.items())]

    def measure() -> float:
        times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", run(line, folder))]
        tokens = shape["batch_size"] * shape["gradient_accumulation_steps"] * BLOCK_SIZE
        return tokens / statistics.median(times[2:]) * 1e3

    return measure


def run(line: list[str], folder: Path, threads: int | None = None) -> str:
    """What a command writes to standard output."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(line)[:200]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def peaks_of_the_machine() -> dict[str, float]:
    """TFLOP/s of a matmul of 1024² in each format."""
    import torch

    from nanogpt_dist.peaks import peak_tflops

    cpu = torch.device("cpu")
    return {
        str(dtype)[6:]: round(peak_tflops(cpu, dtype), 3)
        for dtype in (torch.float32, torch.bfloat16)
    }


if __name__ == "__main__":
    main()
