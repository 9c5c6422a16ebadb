"""What campaigns have found: kept in tests/faults/figures.json, shown as docs/faults.md."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "figures.json"
PAGE = HERE.parents[1] / "docs" / "faults.md"

TEXT = """\
# What survives what

Each row is a fault, what has to hold after it, and what a campaign found here. Written by
`python -m tests.faults.campaign --record`, which injects the faults into real commands, real files
and real processes, each try from a seed of its own; `make campaign` does all for 45 minutes, `make
test` a few tries of each. *Worst* is the longest time of a try, or the time that its goal speaks
of. A row without a command of its own is shown by the tests that it names.

{table}

## The command of each row

{commands}
"""


@dataclass
class Figure:
    """tried: faults injected. lost: after how many it did not hold. worst_s: seconds of the
    slowest. goal: tries that were asked for.
    """

    tried: int = 0
    lost: int = 0
    worst_s: float = 0.0
    goal: int = 0

    def add(self, tried: int, seconds: float) -> None:
        """Tries after which all held."""
        self.tried += tried
        self.worst_s = round(max(self.worst_s, seconds), 3)


def kept() -> dict[int, Figure]:
    """The figures of docs/faults.md, by row."""
    content = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {int(number): Figure(**figure) for number, figure in content.items()}


def keep(found: Mapping[int, Figure], add: bool = False) -> None:
    """Keep new figures in place of the old ones of those rows, and write docs/faults.md.

    add: add them to the old ones instead.
    """
    content = kept()
    for number, figure in found.items():
        if add and number in content:
            content[number].add(figure.tried, figure.worst_s)
            content[number].lost += figure.lost
        elif figure.tried:
            content[number] = figure
    content = dict(sorted(content.items()))
    text = json.dumps({number: asdict(figure) for number, figure in content.items()}, indent=1)
    KEPT.write_text(text + "\n")
    PAGE.write_text(page(content))


def page(content: Mapping[int, Figure]) -> str:
    """docs/faults.md."""
    from docs.generate.text import table
    from tests.faults.rows import ROWS

    header = ("", "fault", "what holds", "tried", "goal", "lost", "worst", "met")
    lines, commands = [], []
    for row in ROWS:
        figure = content.get(row.number, Figure())
        goal = row.goal if row.attempt else max(1, figure.tried)
        met = "yes" if figure.tried >= goal and not figure.lost else "no"
        worst = f"{figure.worst_s:.2f} s" if row.attempt and figure.tried else "–"
        numbers = (f"{figure.tried:,}", f"{goal:,}", f"{figure.lost:,}", worst, met)
        lines.append((str(row.number), row.fault, row.holds, *numbers))
        tests = " ".join(row.tests)
        command = f"python -m tests.faults.campaign --rows {row.number}"
        commands.append(f"- {row.number}: `{command}`" + (f", of `{tests}`" if tests else ""))
    return TEXT.format(table=table(header, lines), commands="\n".join(commands))
