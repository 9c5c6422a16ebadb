"""Documents out of a part of a file.

A text file is one; so is a line of .jsonl, a row of .parquet or .arrow.

A part is `start` to `stop`: bytes of text and lines, row groups of parquet, record batches of
arrow, or the whole of a compressed file. A line belongs to the part in which it begins, so parts
may be cut anywhere; the values of an array belong to the part in which that begins. Nothing is held
in memory but a document, and of a long text not even that. A byte order mark at the start of a text
or a line is no text. With errors `skip` whatever is no text is left out: a document is made all the
same, so that it is counted.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_dist.data.manifest import Errors
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown, storage_errors
from prepare.readers.decompress import open_plain_bytes
from prepare.readers.formats import Format
from prepare.readers.json_field import LongField, line_end
from prepare.readers.json_values import HEAD_BYTES, holds_values, values
from prepare.readers.tables import rows, rows_before
from prepare.readers.text import BOM, TextPart, decode, not_utf8, utf16

LONG_LINE_BYTES = 64 << 20  # a line beyond this is read in chunks
LONG_TEXT_BYTES = 8 << 20  # a text file beyond this is read in chunks
_KINDS = {
    type(None): "null",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "a string",
}


@dataclass(frozen=True)
class Document:
    """One document.

    text: a string, or for a long one its chunks, which can be read again; number: of its line or
    row, from 1.

    value: its number in a file of values that are not one a line, from 1. replaced: U+FFFD stands
    for what was not UTF-8; skipped: it is left out for what it holds, and `text` is empty.
    """

    text: str | Iterable[str]
    number: int = 1
    value: int = 0
    replaced: bool = False
    skipped: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a file.

    column: the field with the text, where there are fields; errors: what to do about bad text.
    """

    path: Path
    format: Format
    start: int
    stop: int
    column: str | None
    errors: Errors

    def documents(self) -> Iterator[Document]:
        """The documents in order.

        Raises BadDataError with file, line or row, and byte; StorageError.
        """
        with storage_errors(self.path):
            if self.format.kind == "text":
                yield from _text(self)
            elif self.format.kind == "lines":
                yield from _json_lines(self)
            else:
                yield from _table(self)

    def where(self, document: Document) -> str:
        """A document for people: file and line or row."""
        if self.format.kind == "text":
            return shown(self.path)
        if self.format.kind == "lines":
            line = _lines_before(self.path, self.start) + document.number
            return (
                f"{shown(self.path)}:{line}{f': value {document.value}' if document.value else ''}"
            )
        row = _rows_before(self.path, self.format, self.start) + document.number
        return f"{shown(self.path)}: row {row}"

    def or_skipped(self, read: Callable[[], Document], number: int, value: int = 0) -> Document:
        """The result of `read`, or a skipped document.

        The latter where `read` raises BadDataError and errors is `skip`.
        """
        try:
            return read()
        except BadDataError:
            if self.errors != "skip":
                raise
            return Document("", number, value, skipped=True)


def _text(part: Part) -> Iterator[Document]:
    text = TextPart(part.path, part.format.compression, part.start, part.stop, part.errors)

    def read() -> Document:
        if part.stop - part.start > LONG_TEXT_BYTES or part.format.compression:
            return Document(_readable(text, part.errors))
        whole = "".join(text)
        return Document(whole, replaced=text.replaced)

    yield part.or_skipped(read, 1)


def _readable(chunks: Iterable[str], errors: Errors) -> Iterable[str]:
    """`chunks`, checked now where errors is `skip`, and read again later. Raises BadDataError."""
    if errors == "skip":
        for _ in chunks:
            pass
    return chunks


def _json_lines(part: Part) -> Iterator[Document]:
    with open_plain_bytes(part.path, part.format.compression) as file:
        head = file.read(HEAD_BYTES)
    if part.errors != "skip" and (kind := utf16(head)):
        raise BadDataError(not_utf8(part.path, kind))
    with open_plain_bytes(part.path, part.format.compression) as file:
        if holds_values(head):
            if part.start == 0:
                yield from _values_of(part, file)
        elif part.format.compression:
            yield from _lines_of(part, file, 0, None)
        else:
            yield from _lines_of(part, file, _line_start(file, part.start), part.stop)


def _values_of(part: Part, file: BinaryIO) -> Iterator[Document]:
    """The objects of an array, or of a file that has them over several lines."""
    try:
        for number, (line, data) in enumerate(values(file, LONG_LINE_BYTES), 1):
            yield part.or_skipped(
                lambda: _record(part, data, Document("", line, number)),  # noqa: B023
                line,
                number,
            )
    except ValueError as error:  # there is no telling where the next one begins
        raise BadDataError(
            f"{shown(part.path)}:{error}; mend the file, or write a line for each object"
        ) from None


def _lines_of(part: Part, file: BinaryIO, position: int, stop: int | None) -> Iterator[Document]:
    """The lines of an open file that begin from `position` on and before `stop`."""
    number = 0
    while (stop is None or position < stop) and (data := file.readline(LONG_LINE_BYTES + 1)):
        number += 1
        start, position = position, position + len(data)
        if len(data) > LONG_LINE_BYTES:
            if part.format.compression:
                yield part.or_skipped(lambda: _refused_long_line(part, number), number)  # noqa: B023
                while not data.endswith(b"\n") and (data := file.readline(1 << 20)):
                    pass
                continue
            position = line_end(part.path, start)
            yield part.or_skipped(lambda: _long_line(part, start, position, number), number)  # noqa: B023
            file.seek(position)
            continue
        data = data.removeprefix(BOM)
        if data.strip():
            yield part.or_skipped(lambda: _record(part, data, Document("", number)), number)  # noqa: B023


def _long_line(part: Part, start: int, stop: int, number: int) -> Document:
    assert part.column is not None
    where = part.where(Document("", number))
    return Document(
        _readable(LongField(part.path, start, stop, part.column, part.errors, where), part.errors),
        number,
    )


def _refused_long_line(part: Part, number: int) -> Document:
    where = part.where(Document("", number))
    raise BadDataError(
        f"{where}: longer than {LONG_LINE_BYTES:,} bytes; unpack the file, or give --errors skip"
    )


def _line_start(file: BinaryIO, position: int) -> int:
    """Seek to the first line that begins at `position` or behind it, and return where that is."""
    if position == 0:
        return 0
    file.seek(position - 1)
    while (data := file.readline(1 << 20)) and not data.endswith(b"\n"):
        pass
    return file.tell()


@cache
def _lines_before(path: Path, start: int) -> int:
    """Lines that begin before the part of a file that begins at `start`."""
    count = 0
    with path.open("rb") as file:
        left = _line_start(file, start)
        file.seek(0)
        while left > 0 and (data := file.read(min(1 << 20, left))):
            count += data.count(b"\n")
            left -= len(data)
    return count


@cache
def _rows_before(path: Path, form: Format, start: int) -> int:
    return rows_before(path, form.kind, start)


def _record(part: Part, data: bytes, where: Document) -> Document:
    """The document in an object of JSON. Raises BadDataError, also where errors is `skip`."""
    line, replaced, bad = decode(data.rstrip(b"\r\n"), part.errors)
    if bad is not None:
        byte = f"byte {data[bad]:#04x} is not UTF-8"
        raise BadDataError(
            f"{part.where(where)}:{bad}: {byte}; convert the file, or give --errors replace or skip"
        )
    text = _field(part, line, where)
    if "\\u" in line:  # only an escape can bring in half of a surrogate pair
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if part.errors != "replace":
                code = f"character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair"  # noqa: E501
                raise BadDataError(
                    f"{part.where(where)}: {code}; mend it, or give --errors replace or skip"
                ) from None
            text, replaced = (
                text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
                True,
            )
    return Document(text, where.number, where.value, replaced)


def _field(part: Part, line: str, where: Document) -> str:
    try:
        # an int of 5,000 digits would be an error; we want the text only
        row = json.loads(line, parse_int=float)
    except (ValueError, RecursionError) as error:
        reason = (
            f"column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else "too deep"
        )
        advice = "each line is one object; mend it, or give --errors skip"
        raise BadDataError(f"{part.where(where)}: not JSON ({reason}); {advice}") from None
    assert part.column is not None
    text = row.get(part.column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadDataError(f"{part.where(where)}: {_no_text(row, part.column)}")
    return text


def _no_text(row: Any, column: str) -> str:
    """Why a value of JSON has no text in field `column`, and what to do about it."""
    column = column[:40]
    if isinstance(row, str):
        return (
            f"a string, not an object with a field {column}; type: jq -c '.. | strings | {{text: "
            ".}' FILE > NEW.jsonl"
        )
    if not isinstance(row, dict):
        return (
            f"{_KINDS[type(row)]}, not an object with a field {column}; mend it, or give --errors "
            "skip"
        )
    if column in row:
        return (
            f"field {column} holds {_KINDS[type(row[column])]}, not text; give --errors skip, or "
            "another --column"
        )
    fields = ", ".join(map(str, row))[:60]
    inner = next(
        (
            name
            for name, value in row.items()
            if isinstance(value, list) and value and type(value[0]) is dict
        ),
        "",
    )
    if re.fullmatch(r"\w{1,20}", inner):
        advice = f"for those in {inner} type: jq -c '.{inner}[]' FILE > NEW.jsonl"
    else:
        advice = "choose one with --column, or give --errors skip"
    return f"no text in field {column}; it has: {fields}; {advice}"


def _table(part: Part) -> Iterator[Document]:
    assert part.column is not None
    for number, value in enumerate(
        rows(part.path, part.format.kind, part.column, part.start, part.stop), 1
    ):
        if isinstance(value, str):
            yield Document(value, number)
        else:
            yield part.or_skipped(lambda: _cell(part, value, number), number)  # noqa: B023


def _cell(part: Part, value: bytes | None, number: int) -> Document:
    """The document in bytes. Raises BadDataError for such as are not UTF-8, and for null."""
    where = part.where(Document("", number))
    if value is None:
        raise BadDataError(
            f"{where}: null in column {part.column}; remove such rows, or give --errors skip"
        )
    text, replaced, bad = decode(value, part.errors)
    if bad is not None:
        what = f"byte {bad} of column {part.column} is not UTF-8"
        raise BadDataError(f"{where}: {what}; give --errors replace or skip")
    return Document(text, number, replaced=replaced)
