"""HTML of texts and tables; whatever comes from a file is escaped. No torch."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "–"
LONGEST = 400  # characters of a table's cell


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: object) -> str:
    """`value` as HTML text, or as an attribute's in double quotes."""
    return value if isinstance(value, Markup) else html.escape(str(value), quote=True)


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """An element; attributes by their names, class_ is class."""
    given = "".join(f' {key.rstrip("_")}="{escaped(each)}"' for key, each in attributes.items())
    return Markup(f"<{name}{given}>{escaped(content)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after the other."""
    return Markup("".join(map(escaped, parts)))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Markup:
    """A table that scrolls by itself where it is too wide."""
    head = tag("tr", joined(tag("th", each) for each in header))
    body = joined(tag("tr", joined(tag("td", cell(each)) for each in row)) for row in rows)
    inner = joined([tag("thead", head), tag("tbody", body)])
    return tag("div", tag("table", inner, class_=kind), class_="wide")


def section(title: str, content: object) -> Markup:
    """A part of the page under its heading."""
    return tag("section", joined([tag("h2", title), content]))


def cell(value: object) -> object:
    """A value for people, of no endless length."""
    if value is None:
        return MISSING
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = number(value) if isinstance(value, int | float) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def number(value: float) -> str:
    """A number in full where it is whole, else with six digits at most."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def size(nbytes: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:,.1f} {unit}"
    return f"{nbytes / 1e3:,.1f} kB"


def short(value: float) -> str:
    """A count for people: 1.23 M."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


def json_text(content: Any) -> Markup:
    """`content` as JSON for a script element, which nothing in it can end."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
