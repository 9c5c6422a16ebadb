"""Every benchmark one after the other on this machine, and benchmarks/RESULTS.md of what they say.

    python benchmarks/all.py --against-nanogpt nanoGPT --against-litgpt peer/bin/litgpt \
        --texts docs --text tinyshakespeare.txt

Each script's first lines say what it does. Two hours on two cores; nothing else should run.
What each has said is kept in --kept, and one that is there is not run again. A row that falls short
of what it is to reach says so.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMITS = HERE / "LIMITS.md"  # what bounds the figures, written by hand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--against-litgpt", type=Path, required=True, help="the command litgpt")
    parser.add_argument(
        "--texts", type=Path, action="append", default=[], help="a folder of texts, for prepare.py"
    )
    parser.add_argument("--text", type=Path, help="tinyshakespeare's input.txt, for learning.py")
    parser.add_argument("--megabytes", type=int, default=120, help="of them")
    parser.add_argument(
        "--kept", type=Path, default=Path("kept"), help="a folder for what each script says"
    )
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    given = parser.parse_args()
    nanogpt = ["--against-nanogpt", str(given.against_nanogpt)]
    texts = [part for path in given.texts for part in ("--texts", str(path))]
    scripts = {
        "training.py": nanogpt,
        **({"learning.py": [*nanogpt, "--text", str(given.text)]} if given.text else {}),
        "sampling.py": nanogpt,
        "prepare.py": [*nanogpt, *texts, "--megabytes", str(given.megabytes)],
        "starting.py": ["--against-litgpt", str(given.against_litgpt)],
        "loading.py": [],
        "saving.py": [],
    }
    said = {}
    given.kept.mkdir(parents=True, exist_ok=True)
    for name, arguments in scripts.items():
        path = given.kept / f"{name}.json"
        if not path.exists():
            print(f"— {name}", file=sys.stderr, flush=True)
            line = [sys.executable, str(HERE / name), *arguments]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            path.write_text(done.stdout, encoding="utf-8")
        said[name] = json.loads(path.read_text(encoding="utf-8"))
    given.out.write_text(page(said), encoding="utf-8")


def page(said: dict[str, dict[str, Any]]) -> str:
    """RESULTS.md: what each script has said, as one table."""
    machine: dict[str, str] = {}
    for each in said.values():
        machine |= each["machine"]
    versions = " · ".join(f"{name} {version}" for name, version in machine.items() if name != "cpu")
    peaks = said.get("training.py", {}).get("matmul_tflops", {})
    about = f"{datetime.date.today()} · {machine['cpu']} · {versions}"
    if peaks:
        about += f" · matmul peak {peaks['bfloat16']} TFLOP/s in bf16, {peaks['float32']} in fp32"
    lines = [
        "# Results",
        "",
        f"{about}.",
        "",
        "One run of `benchmarks/all.py`. Each ratio is of medians, of what ran in turns; behind it "
        "the least and the",
        "greatest of a round. `≥` and `≤` are what is to be reached.",
        "",
        "| what | beside | ratio | rounds | reach | |",
        "|---|---|---|---|---|---|",
    ]
    for each in said.values():
        lines += [line_of(row) for row in each["rows"]]
    lines += ["", "## The figures", ""]
    for each in said.values():
        lines += figures_of(each["rows"])
    return "\n".join(lines) + "\n\n" + LIMITS.read_text(encoding="utf-8")


def line_of(row: dict[str, Any]) -> str:
    reach, at_most = row.get("reach"), row.get("at_most", False)
    wanted = "" if reach is None else f"{'≤' if at_most else '≥'} {reach:g}"
    good = reach is None or (row["ratio"] <= reach if at_most else row["ratio"] >= reach)
    good &= row.get("reached", True)
    rounds = f"{row['least']:g} – {row['greatest']:g}" if "least" in row else ""
    return (
        f"| {row['what']} | {row['beside']} | {row['ratio']:g} | {rounds} | {wanted} | "
        f"{'' if good else 'short'} |"
    )


def figures_of(rows: list[dict[str, Any]]) -> list[str]:
    """What the ratios are made of, once where several rows have the same."""
    known = ("what", "beside", "ratio", "least", "greatest", "reach", "at_most", "reached")
    found: dict[str, str] = {}
    for row in rows:
        text = "; ".join(
            f"{key} {text_of(value)}" for key, value in row.items() if key not in known
        )
        if text:
            found.setdefault(text, row["what"])
    return [f"- {what}: {text}" for text, what in found.items()]


def text_of(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text_of(figure)}" for name, figure in value.items())
    return (
        f"{value:,}"
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
    )


if __name__ == "__main__":
    main()
