"""How the scripts here measure: what is compared runs in turns in one process tree, and ratios are
of neighbours.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

Measure = Callable[[], float]


def in_turns(
    cases: dict[str, Measure],
    rounds: int,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """`rounds` figures of each case, taken A B C A B C …, after one of each that does not count."""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-warm_up, rounds):
        for name, measure in cases.items():
            figure = measure()
            if number >= 0:
                figures[name].append(figure)
                print(f"{name}: {figure:.4g}", file=sys.stderr, flush=True)
    return figures


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of the medians, and the least and the greatest of one round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(ours) / statistics.median(theirs)
    return {
        "ratio": round(median, 3),
        "least": round(min(each), 3),
        "greatest": round(max(each), 3),
    }


def alone(values: list[float]) -> dict[str, float]:
    """In the place of a ratio, where figures stand for themselves: their median, least and
    greatest.
    """
    found = {"ratio": statistics.median(values), "least": min(values), "greatest": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def medians(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


def machine(*packages: str) -> dict[str, str]:
    """Where the figures come from."""
    found = {"cpu": f"{os.cpu_count()} × {cpu_name()}", "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in packages}


def cpu_name() -> str:
    """As the kernel tells it, with the matrix instructions that it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(
        line.split("\t: ", 1)
        for line in (line.replace("\t\t", "\t") for line in lines)
        if "\t: " in line
    )
    has = [
        name
        for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
        if name in fields.get("flags", "")
    ]
    return f"{fields.get('model name', platform.processor())} ({', '.join(has[:2])})"


def report(rows: list[dict[str, object]], **about: object) -> None:
    """One JSON object: rows of {what, beside, ratio, least, greatest, reach, figures}."""
    print(json.dumps({**about, "rows": rows}, indent=1))
