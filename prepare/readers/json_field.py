"""The text in a line of JSON that is too long for memory, unescaped in chunks."""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from nanogpt_dist.data.manifest import Errors
from nanogpt_dist.errors import BadDataError
from prepare.readers.text import BOM, decode

CHUNK_BYTES = 1 << 20
WINDOW_BYTES = 64 << 20  # searched at a time
_SPACE = re.compile(rb"[ \t\r\n]*")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL
)
_BRACKET = re.compile(rb'[\[\]{}"]')
_AFTER_SCALAR = re.compile(rb"[,}\]]")


def line_end(path: Path, start: int) -> int:
    """The end of the line that begins at byte `start`.

    Behind its line feed, or at the end of the file.
    """
    with path.open("rb") as file:
        file.seek(start)
        while (data := file.readline(CHUNK_BYTES)) and not data.endswith(b"\n"):
            pass
        return file.tell()


class LongField:
    """The string in field `column` of the object at bytes start … stop, in chunks.

    It can be read again.

    Only that field is checked to the letter; of the others only where they end. where: the line,
    for messages. replaced: whether the last reading put U+FFFD in the place of what is not UTF-8.
    Raises BadDataError where the line is no object with such a field, or its text is bad and errors
    is not `replace`.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        stop: int,
        column: str,
        errors: Errors,
        where: str,
    ) -> None:
        self.path, self.errors, self.where, self.column = path, errors, where, column
        self.replaced = False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.range = self._find(data, start, stop)

    def __iter__(self) -> Iterator[str]:
        self.replaced = False
        start, stop = self.range
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            while start < stop:
                end = _chunk_end(data, start, stop)
                yield self._unescaped(data[start:end])
                _let_go(data, start, end)
                start = end

    def _unescaped(self, data: bytes) -> str:
        text, replaced, bad = decode(data, self.errors)
        if bad is not None:
            byte = f"byte {data[bad]:#04x} is not UTF-8"
            raise BadDataError(
                f"{self.where}: {byte}; convert the file, or give --errors replace or skip"
            )
        try:
            text = json.loads(f'"{text}"')
        except ValueError:
            raise self._refused("not JSON") from None
        try:
            text.encode()
        except UnicodeEncodeError:
            if self.errors != "replace":
                raise self._refused("half of a surrogate pair") from None
            text, replaced = (
                text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
                True,
            )
        self.replaced = self.replaced or replaced
        return text

    def _refused(self, reason: str) -> BadDataError:
        return BadDataError(
            f"{self.where}: {reason} in field {self.column[:40]}; each line is one object of JSON"
        )

    def _find(self, data: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
        """Where the field's string begins and ends, without its quotes."""
        found = None
        if data[start : start + len(BOM)] == BOM:
            start += len(BOM)
        at = self._expect(data, start, stop, b"{")
        while True:
            key_start = self._expect(data, at, stop, b'"')
            key_stop = self._string_end(data, key_start, stop)
            at = _skip_space(data, self._expect(data, key_stop + 1, stop, b":"))
            if data[at : at + 1] == b'"':
                string_start, string_stop = at + 1, self._string_end(data, at + 1, stop)
                if (
                    key_stop - key_start < 1000
                    and self._unescaped(data[key_start:key_stop]) == self.column
                ):
                    found = string_start, string_stop
                at = string_stop + 1
            else:
                at = self._value_end(data, at, stop)
            at = _skip_space(data, at)
            if data[at : at + 1] == b"}":
                break
            at = self._expect(data, at, stop, b",")
        if found is None:
            raise BadDataError(
                f"{self.where}: no text in field {self.column[:40]}; choose one with --column"
            )
        return found

    def _expect(self, data: mmap.mmap, at: int, stop: int, char: bytes) -> int:
        at = _skip_space(data, at)
        if at >= stop or data[at : at + 1] != char:
            raise BadDataError(f"{self.where}: not JSON (column {at + 1}); each line is one object")
        return at + 1

    def _string_end(self, data: mmap.mmap, start: int, stop: int) -> int:
        """The closing quote of the string whose content begins at `start`."""
        at = kept = start
        while at < stop:
            found = data.find(b'"', at, min(stop, at + WINDOW_BYTES))
            if found >= 0:
                slashes = found
                while slashes > start and data[slashes - 1] == 0x5C:
                    slashes -= 1
                if (found - slashes) % 2 == 0:
                    return found
            at = found + 1 if found >= 0 else at + WINDOW_BYTES
            if at - kept > WINDOW_BYTES:
                _let_go(data, kept, at)
                kept = at
        raise self._refused("a string without an end")

    def _value_end(self, data: mmap.mmap, at: int, stop: int) -> int:
        """Behind a value that is no string."""
        if data[at : at + 1] not in (b"{", b"["):
            found = _AFTER_SCALAR.search(data, at, stop)
            if not found:
                raise self._refused("a value without an end")
            return found.start()
        depth = 0
        while found := _BRACKET.search(data, at, stop):
            at = found.end()
            if found[0] == b'"':
                at = self._string_end(data, at, stop) + 1
            else:
                depth += 1 if found[0] in (b"[", b"{") else -1
                if depth == 0:
                    return at
        raise self._refused("a value without an end")


def _let_go(data: mmap.mmap, start: int, stop: int) -> None:
    """These bytes of the file need not be in memory any more."""
    start -= start % mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, start, min(stop, len(data)) - start)


def _skip_space(data: mmap.mmap, at: int) -> int:
    found = _SPACE.match(data, at)
    return found.end() if found else at


def _chunk_end(data: mmap.mmap, start: int, stop: int) -> int:
    """A place about a MiB behind `start` that is within no character and no escape."""
    end = start + CHUNK_BYTES
    if end >= stop:
        return stop
    for escape in _ESCAPE.finditer(data, start, stop):
        if escape.start() >= end:
            break
        if escape.end() > end:
            return escape.end()
    while end < stop and data[end] & 0xC0 == 0x80:
        end += 1
    return end
