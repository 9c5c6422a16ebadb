"""Documents out of a part of a file: a text file is one, a line of .jsonl or a row of .parquet or .arrow is one.

A part is `start` to `stop`: bytes of text and lines, row groups of parquet, record batches of arrow, or the whole of
a compressed file. A line belongs to the part in which it begins, so parts may be cut anywhere. Nothing is held in
memory but a document, and of a long text not even that. A byte order mark at the start of a file is no text.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.shards.manifest import Errors
from nanogpt_dist.storage.durable import shown, told
from prepare.formats import Format
from prepare.longline import LongField, line_end
from prepare.plain import open_plain_bytes
from prepare.tables import rows
from prepare.textfile import BOM, TextPart, decode

LONG_LINE_BYTES = 64 << 20  # a line beyond this is read in chunks
LONG_TEXT_BYTES = 8 << 20  # a text file beyond this is read in chunks


@dataclass(frozen=True)
class Document:
    """text: a string, or for a long one its chunks, which can be read again; number: of its line or row, from 1.

    replaced: U+FFFD stands for what was not UTF-8; skipped: it is left out for that, and `text` is empty.
    """

    text: str | Iterable[str]
    number: int = 1
    replaced: bool = False
    skipped: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a file. column: the field with the text, where there are fields; errors: what to do about bad text."""

    path: Path
    format: Format
    start: int
    stop: int
    column: str | None
    errors: Errors

    def documents(self) -> Iterator[Document]:
        """The documents in order. Raises BadDataError with file, line or row, and byte; StorageError."""
        with told(self.path):
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
            return f"{shown(self.path)}:{_lines_before(self.path, self.start) + document.number}"
        return f"{shown(self.path)}: row {document.number} from {self.start}"


def _text(part: Part) -> Iterator[Document]:
    text = TextPart(part.path, part.format.compression, part.start, part.stop, part.errors)
    try:
        if part.stop - part.start > LONG_TEXT_BYTES or part.format.compression:
            if part.errors == "skip":
                for _ in text:
                    pass
            yield Document(text)
        else:
            whole = "".join(text)
            yield Document(whole, replaced=text.replaced)
    except BadDataError:
        if part.errors != "skip":
            raise
        yield Document("", skipped=True)


def _json_lines(part: Part) -> Iterator[Document]:
    if part.format.compression:
        with open_plain_bytes(part.path, part.format.compression) as file:
            yield from _lines_of(part, file, 0, None)
    else:
        with part.path.open("rb") as file:
            yield from _lines_of(part, file, _line_start(file, part.start), part.stop)


def _lines_of(part: Part, file: BinaryIO, position: int, stop: int | None) -> Iterator[Document]:
    """The lines of an open file that begin from `position` on and before `stop`."""
    number = 0
    while (stop is None or position < stop) and (data := file.readline(LONG_LINE_BYTES + 1)):
        number += 1
        start, position = position, position + len(data)
        if len(data) > LONG_LINE_BYTES:
            if part.format.compression:
                where = part.where(Document("", number))
                raise BadDataError(f"{where}: longer than {LONG_LINE_BYTES:,} bytes; unpack the file to have it read")
            position = line_end(part.path, start)
            yield _long_line(part, start, position, number)
            file.seek(position)
            continue
        if start == 0:
            data = data.removeprefix(BOM)
        if data.strip():
            yield _json_line(part, data, number)


def _long_line(part: Part, start: int, stop: int, number: int) -> Document:
    assert part.column is not None
    text = LongField(part.path, start, stop, part.column, part.errors, part.where(Document("", number)))
    if part.errors == "skip":
        try:
            for _ in text:
                pass
        except BadDataError:
            return Document("", number, skipped=True)
    return Document(text, number)


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


def _json_line(part: Part, data: bytes, number: int) -> Document:
    line, replaced, bad = decode(data.rstrip(b"\r\n"), part.errors)
    where = Document("", number)
    if bad is not None:
        if part.errors == "skip":
            return Document("", number, skipped=True)
        byte = f"byte {data[bad]:#04x} is not UTF-8"
        raise BadDataError(f"{part.where(where)}:{bad}: {byte}; convert the file, or give --errors replace or skip")
    text = _field(part, line, where)
    if "\\u" in line:  # only an escape can bring in half of a surrogate pair
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if part.errors == "skip":
                return Document("", number, skipped=True)
            if part.errors == "strict":
                code = f"character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair"
                raise BadDataError(f"{part.where(where)}: {code}; mend it, or give --errors replace or skip") from None
            text, replaced = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
    return Document(text, number, replaced)


def _field(part: Part, line: str, where: Document) -> str:
    try:
        row = json.loads(line, parse_int=float)  # an int of 5,000 digits would be an error; we want the text only
    except (ValueError, RecursionError) as error:
        reason = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise BadDataError(f"{part.where(where)}: not JSON ({reason}); each line is one object") from None
    assert part.column is not None
    text = row.get(part.column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        fields = ", ".join(map(str, row))[:60] if isinstance(row, dict) else type(row).__name__
        reason = f"no text in field {part.column[:40]}; it has: {fields}; choose one with --column"
        raise BadDataError(f"{part.where(where)}: {reason}")
    return text


def _table(part: Part) -> Iterator[Document]:
    assert part.column is not None
    for number, value in enumerate(rows(part.path, part.format.kind, part.column, part.start, part.stop), 1):
        yield _cell(part, value, number)


def _cell(part: Part, value: Any, number: int) -> Document:
    if isinstance(value, str):
        return Document(value, number)
    bad: int | None = None
    if value is not None:
        text, replaced, bad = decode(value, part.errors)
        if bad is None:
            return Document(text, number, replaced)
    if part.errors == "skip":
        return Document("", number, skipped=True)
    if value is None:
        what = f"null in column {part.column}; remove such rows, or give --errors skip"
    else:
        what = f"byte {bad} of column {part.column} is not UTF-8; give --errors replace or skip"
    raise BadDataError(f"{part.where(Document('', number))}: {what}")
