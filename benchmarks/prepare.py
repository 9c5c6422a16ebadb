"""`nanogpt prepare` beside nanoGPT's own data/openwebtext/prepare.py: the same documents, the same
ids, MB/s of each.

    git clone https://github.com/karpathy/nanoGPT
    apt-get download python3.11-doc debian-handbook debian-reference-en     # each: dpkg-deb -x FILE docs
    python benchmarks/prepare.py --against-nanogpt nanoGPT --texts docs     # --megabytes 60 --workers 2 --rounds 3

The documents are English and code: what is found in --texts, then the running Python's library.
Tags are taken out of HTML. nanoGPT's script is run as it is, but that `load_dataset` is handed
these documents instead of the download, num_proc is --workers, and a split may have fewer than
1,024 documents. It needs tiktoken's files of gpt2, cached or downloaded. Ours runs with tiktoken,
and with splintr-rs (nanogpt-dist[fast]) if that is installed. All are whole processes, in turns,
timed from start to exit. Prints one JSON object.
"""  # noqa: E501

import argparse
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from turns import CLONE, in_turns, machine, medians, ratio, report

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
            if (
                path.suffix not in ENDINGS
                or not path.is_file()
                or not 1000 < path.stat().st_size < 1_000_000
            ):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if path.suffix == ".html":
                text = html.unescape(
                    re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", text, flags=re.DOTALL)
                )
            if hash(text) not in seen:
                seen.add(hash(text))
                size -= len(text.encode())
                yield text
            if size <= 0:
                return


def timed(line: list[str], folder: Path, **more: str) -> float:
    """Seconds that a command takes, from start to exit; more: of its environment."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **more}
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
    from nanogpt_dist.data import DataFolder

    data = DataFolder.open(folder)
    return np.concatenate([split.read(0, split.tokens) for split in data.splits.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--texts", type=Path, action="append", default=[], help="a folder of texts")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    script = given.against_nanogpt.resolve() / "data" / "openwebtext" / "prepare.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import pyarrow as pa
        from pyarrow import parquet

        texts = list(documents(given.megabytes * 10**6, given.texts))
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        parquet.write_table(pa.table({"text": texts}), folder / "texts.parquet", row_group_size=200)
        (folder / "without").mkdir()
        (folder / "without" / "splintr.py").write_text("raise ImportError\n")

        def nanogpt() -> float:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            arguments = [str(script), str(folder / "texts.parquet"), str(given.workers)]
            return megabytes / timed([sys.executable, "-c", RUN_NANOGPT, *arguments], folder)

        def ours(out: str, **more: str) -> Callable[[], float]:
            line = [
                sys.executable,
                str(CLONE / "nanogpt"),
                "prepare",
                "text",
                "--source",
                "texts.parquet",
            ]
            line += ["--out", out, "--workers", str(given.workers), "--split-by", "shuffled"]
            line += ["--val-fraction", "0.0005"]

            def measure() -> float:
                shutil.rmtree(folder / out, ignore_errors=True)
                return megabytes / timed(line, folder, **more)

            return measure

        cases = {
            "nanoGPT": nanogpt,
            "tiktoken": ours("tiktoken", PYTHONPATH=str(folder / "without")),
        }
        if importlib.util.find_spec("splintr"):
            cases["fast"] = ours("fast")
        figures = in_turns(cases, given.rounds, warm_up=False)
        raw = [np.fromfile(folder / f"{split}.bin", np.uint16) for split in ("train", "val")]
        theirs = split_at_ends(np.concatenate(raw))
        same = all(
            split_at_ends(read_ours(folder / out)) == theirs for out in cases if out != "nanoGPT"
        )
    about = {"mb_per_second": medians(figures), "same_ids": same}
    rows = [
        {
            "what": f"prepare, {given.workers} workers, {megabytes:.0f} MB{with_what}",
            "beside": "nanoGPT's prepare.py",
        }
        | {"reach": reach}
        | ratio(figures[case], figures["nanoGPT"])
        | about
        for case, with_what, reach in (("tiktoken", "", 4.0), ("fast", ", with fast", 10.0))
        if case in figures
    ]
    report(rows, machine=machine("tiktoken", "datasets", "numpy"), documents=len(texts))


if __name__ == "__main__":
    main()
