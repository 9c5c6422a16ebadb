"""Plain text of the program's as MyST."""

import re
from collections.abc import Iterable

from rich.text import Text


def escape(text: str) -> str:
    """`text`, which may hold `code`, as MyST that shows it as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<>|$\[\]{}#~])", r"\\\1", part)
        for part in parts
    )


def code(value: object) -> str:
    """A value as `code`, as a TOML file and --help have it."""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain(markup: str) -> str:
    """A help text without rich's tags, as a terminal shows it."""
    return Text.from_markup(markup).plain.replace("\b\n", "").strip()


def prose(text: str) -> str:
    """The paragraphs of a help text as MyST."""
    found = re.split(r"\n\s*\n", text)
    return "\n".join(escape(" ".join(paragraph.split())) + "\n" for paragraph in found)
