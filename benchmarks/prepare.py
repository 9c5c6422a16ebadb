"""`nanogpt prepare` beside nanoGPT's own data/openwebtext/prepare.py: the same documents, the same ids, MB/s of each.

    git clone https://github.com/karpathy/nanoGPT
    apt-get download python3.11-doc debian-handbook debian-reference-en     # each: dpkg-deb -x FILE docs
    python benchmarks/prepare.py nanoGPT --texts docs      # --megabytes 60 --workers 2 --rounds 3

The documents are English and code: what is found in --texts, then the running Python's library. Tags are taken out of
HTML. nanoGPT's script is run as it is, but that `load_dataset` is handed these documents instead of the download,
num_proc is --workers, and a split may have fewer than 1,024 documents. It needs tiktoken's files of gpt2, cached or
downloaded. Both run as whole processes, in turns, timed from start to exit. Prints one JSON object; the ratio is of the
medians.
"""

import argparse
import html
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CLONE = Path(__file__).resolve().parents[1]
ENDINGS = (".py", ".md", ".rst", ".txt", ".html")
EOT = 50256

# nanoGPT's script, with the data set handed to it.
RUN_NANOGPT = """
import runpy, sys, datasets
script, source, workers = sys.argv[1:]
def load(*names, **options):
    return datasets.DatasetDict(train=datasets.Dataset.from_parquet(source, cache_dir="cache"))
datasets.load_dataset = load
text = open(script).read().replace("num_proc = 8", f"num_proc = {workers}")
text = text.replace("total_batches = 1024", "total_batches = min(1024, len(dset))")
open("prepare.py", "w").write(text)
runpy.run_path("prepare.py", run_name="__main__")
"""


def documents(size: int, places: list[Path]) -> Iterator[str]:
    """Different texts of 1 kB to 1 MB, `size` bytes in all."""
    seen = set()
    for place in [*places, Path(sysconfig.get_path("stdlib"))]:
        for path in sorted(place.rglob("*")):
            if path.suffix not in ENDINGS or not path.is_file() or not 1000 < path.stat().st_size < 1_000_000:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if path.suffix == ".html":
                text = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", text, flags=re.DOTALL))
            if hash(text) not in seen:
                seen.add(hash(text))
                size -= len(text.encode())
                yield text
            if size <= 0:
                return


def timed(line: list[str], folder: Path) -> float:
    """Seconds that a command takes, from start to exit."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    started = time.perf_counter()
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(line)[:200]} failed:\n{done.stderr[-3000:]}")
    return seconds


def split_at_ends(ids: np.ndarray) -> list[bytes]:
    """The documents of a stream, in an order that does not depend on where they stood."""
    ends = np.flatnonzero(ids == EOT) + 1
    return sorted(part.tobytes() for part in np.split(ids, ends) if len(part))


def read_ours(folder: Path) -> np.ndarray:
    sys.path.insert(0, str(CLONE))
    from nanogpt_dist.shards import DataFolder

    data = DataFolder.open(folder)
    return np.concatenate([split.read(0, split.tokens) for split in data.splits.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--texts", type=Path, action="append", default=[], help="a folder of texts")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    script = given.nanogpt.resolve() / "data" / "openwebtext" / "prepare.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import pyarrow as pa
        from pyarrow import parquet

        texts = list(documents(given.megabytes * 10**6, given.texts))
        size = sum(len(text.encode()) for text in texts)
        parquet.write_table(pa.table({"text": texts}), folder / "texts.parquet", row_group_size=200)
        seconds: dict[str, list[float]] = {"nanoGPT": [], "nanogpt-dist": []}
        for number in range(given.rounds):
            for path in folder.glob("cache"):
                subprocess.run(["rm", "-rf", str(path)], check=True)
            theirs = [sys.executable, "-c", RUN_NANOGPT, str(script), str(folder / "texts.parquet"), str(given.workers)]
            ours = [sys.executable, str(CLONE / "nanogpt"), "prepare", "text", "--source", "texts.parquet"]
            ours += ["--out", f"out{number}", "--workers", str(given.workers), "--split-by", "shuffled"]
            ours += ["--val-fraction", "0.0005"]
            seconds["nanoGPT"].append(timed(theirs, folder))
            seconds["nanogpt-dist"].append(timed(ours, folder))
        raw = [np.fromfile(folder / f"{split}.bin", np.uint16) for split in ("train", "val")]
        same = split_at_ends(np.concatenate(raw)) == split_at_ends(read_ours(folder / "out0"))
    speeds = {who: size / 1e6 / statistics.median(times) for who, times in seconds.items()}
    figures = {
        "documents": len(texts),
        "megabytes": round(size / 1e6, 1),
        "workers": given.workers,
        "seconds": {who: [round(one, 2) for one in times] for who, times in seconds.items()},
        "mb_per_second": {who: round(speed, 2) for who, speed in speeds.items()},
        "ratio": round(speeds["nanogpt-dist"] / speeds["nanoGPT"], 2),
        "same_ids": same,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
