"""What commands print: no control codes reach a terminal, any stream takes any character."""

import codecs
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PLAIN = "nanogpt-plain"  # the name of the error handler below
ALIKE = {  # each as wide as what it replaces
    "-": "─━╴╸╶╺–—",
    "=": "═",
    "|": "│┃║╷╵",
    "+": "┌┐└┘├┤┬┴┼╔╗╚╝╤╞╪╡╭╮╰╯",
    **{
        "v": "▼",
        ">": "►→",
        "<": "←",
        "x": "×",
        ".": "·",
        "#": "▒",
        "_": "␣",
        "$": "⏎",
        "T": "ᵀ",
        "~": "≈⇥",
    },
    "?": "\ufffd",
}
ASCII = {ord(char): plain for plain, chars in ALIKE.items() for char in chars} | {
    ord("…"): "...",
    ord("√"): "sqrt ",
}
ASCII |= {ord("β"): "beta", ord("²"): "^2", ord("±"): "+-"}
FILE = 1000  # columns: a file takes lines of any length
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x80-\x9f]|\r(?!\n)")  # not line ends, tabs, DEL


def open_streams() -> None:
    """Standard streams that take any text, and are there: a closed one swallows what is written."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def visible(text: str) -> str:
    """`text` without the control codes that colour a terminal, move its cursor or ring its bell."""
    return CONTROL.sub("\ufffd", text)


def echo(text: str, nl: bool = True, err: bool = False) -> None:
    """Print a line, its control codes made visible; nl=False: without its end.

    JSON has escaped them.

    typer.echo would write UTF-8 to a stream that is set to ASCII.
    """
    print(visible(text), end="\n" if nl else "", file=sys.stderr if err else sys.stdout, flush=True)


def echo_text(text: str, nl: bool = True) -> None:
    """Print text of data or of a model: to a file as it is, to a terminal as echo() does."""
    if sys.stdout.isatty():
        echo(text, nl)
    else:
        print(text, end="\n" if nl else "", flush=True)


def columns() -> int | None:
    """Columns of the terminal; None where standard output is none, and a line has any length."""
    return max(shutil.get_terminal_size().columns, 20) if sys.stdout.isatty() else None


def echo_wrapped(text: str) -> None:
    """Prints prose, its lines broken between words where the terminal ends."""
    width = columns()
    lines = (
        text.split("\n")
        if width is None
        else [part for line in text.split("\n") for part in _wrap(line, width)]
    )
    echo("\n".join(lines))


def _wrap(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def fits(table: "Table", at_most: int | None = None) -> bool:
    """Whether a table goes on the terminal with no cell broken.

    at_most: columns that are wanted at most.
    """
    return _measure(table)[1] <= min(columns() or FILE, at_most or FILE)


def _measure(table: "Table") -> tuple[int, int]:
    """Columns that a table takes with its cells broken where they may be, and with none broken."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=FILE)
    return Measurement.get(console, console.options, table)


def echo_table(table: "Table", at_most: int | None = None, spare: Collection[str] = ()) -> None:
    """Print a table; on a narrow terminal without columns of `spare`, the first first.

    at_most: columns of a wider terminal, or of a file. Where that is not enough cells are folded,
    and nothing is cut.
    """
    from rich.console import Console

    width = min(columns() or FILE, at_most or FILE)
    for header in spare:
        if not fits(table, at_most):
            table.columns[:] = [column for column in table.columns if column.header != header]
    may_break = _measure(table)[0] > width
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.no_wrap and not may_break
        column.header = visible(str(column.header))
        column._cells[:] = [visible(str(cell)) for cell in column._cells]
    Console(highlight=False, markup=False, width=width).print(table)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What a stream prints for characters that its encoding lacks.

    ASCII that looks alike, else their escapes.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(PLAIN, _plain)
