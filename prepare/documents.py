"""Documents out of files: a text file is one, a line of .jsonl or a row of .parquet is one. UTF-8 is strict.

Line-wise and row-wise files are streamed. A byte order mark at the start of a file is no part of its text.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown, told

MAX_LINE_BYTES = 1 << 30  # of a line of .jsonl


@dataclass(frozen=True)
class Document:
    """A text, and how many bytes of its file were consumed to get it (compressed ones where the file is)."""

    text: str
    read_bytes: int


def read_documents(path: Path, column: str) -> Iterator[Document]:
    """The documents of a file, told by its ending. column: the field that holds the text, where there are fields.

    Raises BadDataError with file, line and byte offset; StorageError.
    """
    with told(path):
        name = path.name.lower()
        if name.endswith(".parquet"):
            yield from _parquet_rows(path, column)
        elif name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            yield from _json_lines(path, column)
        else:
            data = path.read_bytes()
            yield Document(_decode(data, path, 1), len(data))


def _decode(data: bytes, path: Path, line: int) -> str:
    """`data`, which begins at line `line` of the file, as text; a byte order mark only begins the file."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff" if line == 1 else "")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line += before.count(b"\n")
        offset = error.start - (before.rfind(b"\n") + 1)
        byte = data[error.start]
        raise BadDataError(f"{shown(path)}:{line}:{offset}: byte {byte:#04x} is not UTF-8; convert the file") from None


def _json_lines(path: Path, column: str) -> Iterator[Document]:
    with path.open("rb") as raw, _decompressed(raw, path) as lines:
        number = 0
        while data := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{shown(path)}:{number}"
            if len(data) > MAX_LINE_BYTES:
                raise BadDataError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes; cut the document into several")
            line = _decode(data.rstrip(b"\r\n"), path, number)
            if line.strip():
                yield Document(_field(line, column, where), raw.tell())


def _field(line: str, column: str, where: str) -> str:
    try:
        row = json.loads(line, parse_int=float)  # an int of 5,000 digits would be an error; we want the text only
    except (ValueError, RecursionError) as error:
        reason = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise BadDataError(f"{where}: not JSON ({reason}); each line is one object") from None
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        fields = ", ".join(map(str, row))[:60] if isinstance(row, dict) else type(row).__name__
        raise BadDataError(f"{where}: no text in field {column[:40]}; it has: {fields}; choose one with --column")
    if "\\u" in line:  # only an escape can bring in half of a surrogate pair
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            raise BadDataError(f"{where}: character {error.start} is {code}, half of a surrogate pair") from None
    return text


@contextmanager
def _decompressed(raw: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """The plain bytes of an open .jsonl, .jsonl.gz or .jsonl.zst. Raises BadDataError where they are damaged or cut."""
    import zstandard

    try:
        if path.suffix.lower() == ".gz":
            yield gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[misc]
        elif path.suffix.lower() == ".zst":
            yield io.BufferedReader(_ZstandardReader(raw), 1 << 20)
        else:
            yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise BadDataError(f"{shown(path)} is damaged or cut off ({str(error)[:60]}); get it again") from None


class _ZstandardReader(io.RawIOBase):
    """Frames one after the other; unlike the library's own reader it notices when the last one is cut off."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.frame = raw, None
        self.compressed = self.plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.plain:
            self.compressed = self.compressed or self.raw.read(1 << 17)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self.plain = self._advance()
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size

    def _advance(self) -> bytes:
        import zstandard

        frame: Any = self.frame or zstandard.ZstdDecompressor().decompressobj()
        plain = frame.decompress(self.compressed)
        self.frame, self.compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
        return plain


def _parquet_rows(path: Path, column: str) -> Iterator[Document]:
    from pyarrow import ArrowException, large_string, parquet, types

    size, number = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if schema.names.count(column) != 1 or not _is_text(schema.field(column).type, types):
                names = ", ".join(schema.names)[:60]
                raise BadDataError(f"{shown(path)}: no text column {column[:40]}; it has: {names}; give --column")
            rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0).cast(large_string()):
                    number += 1
                    text = value.as_py()
                    if text is None:
                        raise BadDataError(f"{shown(path)}: row {number} of column {column} is null; remove such rows")
                    yield Document(text, size * number // rows)
    except UnicodeDecodeError as error:
        raise BadDataError(f"{shown(path)}:{number}:{error.start}: column {column} is not UTF-8; convert it") from None
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's: damaged pages are OSErrors without a number
        raise BadDataError(f"{shown(path)} is no parquet file, or damaged ({str(error)[:60]}); get it again") from None


def _is_text(kind: Any, types: Any) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
