"""TOML of anybody's: tomllib takes memory by the square of a key's parts."""

import re
import tomllib
from typing import Any

MOST_DOTS = 500  # of a line, texts left out: more parts than any key has
_TEXT = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")


def parse_toml(text: str) -> dict[str, Any]:
    """tomllib.loads(). Raises ValueError, RecursionError."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MOST_DOTS and _TEXT.sub("", line).count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots")
    return tomllib.loads(text)
