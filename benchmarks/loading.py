"""What the tokens of an update take of the update itself, and whether memory grows over many
shards.

    python benchmarks/loading.py                # --gigabytes 10; as much disk (TMPDIR), ten minutes

Random ids in shards of 128 MB. The share is of the updates of 6 × 384 (T 256, B 16), which is made
for being short. Then as many tokens as there are are read in the order of training, and the growth
of the process is told: nothing of what was read may be kept. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import CLONE, machine, report

SMALL = [
    "--n-layer",
    "6",
    "--n-head",
    "6",
    "--n-embd",
    "384",
    "--vocab-size",
    "50304",
    "--block-size",
    "256",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=10)
    given = parser.parse_args()
    from nanogpt_dist.bench.data import random_shards

    with tempfile.TemporaryDirectory() as name:
        data = ["--dataset", str(random_shards(Path(name), int(given.gigabytes * 1000)))]
        train = said(
            "train", *SMALL, "--batch-size", "16", *data, "--updates", "10", "--seconds", "300"
        )
        updates = int(given.gigabytes * 1e9 / 2 / (64 * 8 * 1024))
        options = ["--batch-size", "64", "--gradient-accumulation-steps", "8"]
        read = said(
            "data", "gpt2-124m", *data, *options, "--updates", str(updates), "--seconds", "3600"
        )
    share = train["phases"]["data"] / train["ms_per_update"]
    what = f"data loading, {given.gigabytes:g} GB of shards"
    rows: list[dict[str, object]] = [
        {
            "what": what,
            "beside": "the step of 6 × 384",
            "reach": 0.01,
            "at_most": True,
            "ratio": round(share, 5),
            "ms": {
                "data": round(train["phases"]["data"], 2),
                "update": round(train["ms_per_update"], 1),
            },
        },
        {
            "what": "memory that reading all of it takes, MB",
            "beside": "",
            "ratio": round(read["memory_growth_bytes"] / 1e6, 1),
            "tokens_per_second": round(read["tokens_per_second"]),
            "open_ms": round(read["open_ms"], 1),
            "far_ms": round(read["far_ms"], 1),
        },
    ]
    report(rows, machine=machine("torch", "numpy"))


def said(*arguments: str) -> dict[str, Any]:
    """What `nanogpt bench` says."""
    line = [sys.executable, str(CLONE / "nanogpt"), "bench", *arguments, "--json"]
    if arguments[0] == "train":
        line += ["--device", "cpu"]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
