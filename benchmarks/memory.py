"""The memory that `nanogpt prepare` takes: one document of a gigabyte, and corpora of one and of
several gigabytes.

    python benchmarks/memory.py                 # --gigabytes 4: of the larger corpus; 12 GB of disk, ten minutes

Prints one JSON object: for each case the peak of the proportional set sizes (PSS) of all its
processes together, in MiB, looked at four times a second, and the seconds that it took. Linux only.
"""  # noqa: E501

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
GB = 10**9


def library() -> list[str]:
    return [
        path.read_text(errors="replace")
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ]


def write(path: Path, parts: list[str], size: int, before: str = "", behind: str = "") -> None:
    """`parts` again and again until the file has `size` bytes."""
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        written = 0
        while written < size:
            for part in parts:
                written += file.write(part)
        file.write(behind)


def pss_mib(session: int) -> Iterator[int]:
    """Of each process of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.joinpath("stat").read_text().rpartition(")")[2].split()[3] == str(session):
                lines = folder.joinpath("smaps_rollup").read_text().splitlines()
                yield (
                    next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024
                )


def peak(folder: Path, source: str, *options: str) -> dict[str, float]:
    line = [
        sys.executable,
        str(CLONE / "nanogpt"),
        "prepare",
        "text",
        "--source",
        source,
        "--workers",
        "2",
    ]
    started, most = time.monotonic(), 0
    line += ["--out", "out", *options]
    process = subprocess.Popen(line, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, sum(pss_mib(process.pid)))
        time.sleep(0.25)
    if process.returncode:
        sys.exit(f"prepare of {source} failed")
    subprocess.run(["rm", "-rf", "out", source], cwd=folder, check=True)
    return {"peak_pss_mib": most, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4)
    given = parser.parse_args()
    texts = library()
    one_line = [" ".join(text.split()) + " " for text in texts]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "one.txt", one_line, GB)
        figures["one line of .txt, 1 GB"] = peak(folder, "one.txt", "--split-by", "characters")
        inside = [json.dumps(text)[1:-1] for text in one_line]
        write(
            folder / "one.jsonl",
            inside,
            GB,
            '{"text": "small"}\n{"text": "',
            '"}\n' + '{"text": "another"}\n' * 20,
        )
        figures["one line of .jsonl, 1 GB"] = peak(
            folder, "one.jsonl", "--seed", "0", "--val-fraction", "0.5"
        )
        for size in (1, given.gigabytes):
            write(folder / "many.jsonl", lines, int(size * GB))
            figures[f"documents, {size:g} GB"] = peak(folder, "many.jsonl", "--tokenizer", "gpt2")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
