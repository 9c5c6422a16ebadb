"""Text out of UTF-8, strictly or with U+FFFD; long texts in chunks."""

import codecs
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from nanogpt_dist.data.manifest import Errors
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown
from prepare.readers.decompress import open_plain_bytes

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 32  # by which UTF-16 is known
BOM = b"\xef\xbb\xbf"
# Whatever the pattern of a known tokenizer, a token ends where a space follows a letter or digit of
# ASCII, a character of two bytes from U+00C0 on, or one in Chinese, and where one of 、。！，？
# does the latter.
_HAN = rb"(?:\xe4[\xb8-\xbf]|[\xe5-\xe9][\x80-\xbf])[\x80-\xbf]"
_BORDER = re.compile(
    rb"(?:[A-Za-z0-9]|[\xc3-\xdf][\x80-\xbf]|%b)(?= )|%b(?=\xe3\x80[\x81\x82]|\xef\xbc[\x81\x8c\x9f])"  # noqa: E501
    % (_HAN, _HAN)
)


def decode(data: bytes, errors: Errors) -> tuple[str, bool, int | None]:
    """`data` as text; whether something was replaced; the offset of the first bad byte.

    The latter where nothing was replaced.
    """
    try:
        return data.decode(), False, None
    except UnicodeDecodeError as error:
        if errors == "replace":
            return data.decode(errors="replace"), True, None
        return "", False, error.start


class TextPart:
    """The text in bytes start … stop of a file, in chunks; it can be read again.

    A compressed file is read whole. replaced: whether the last reading put U+FFFD in the place of
    what is not UTF-8. Raises BadDataError with line and byte for what is not UTF-8, unless errors
    is `replace`; for UTF-16 always.
    """

    def __init__(self, path: Path, compression: str, start: int, stop: int, errors: Errors) -> None:
        self.path, self.compression, self.start, self.stop, self.errors = (
            path,
            compression,
            start,
            stop,
            errors,
        )
        self.replaced = False

    def __iter__(self) -> Iterator[str]:
        self.replaced = False
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        for data in self._chunks():
            state = decoder.getstate()
            try:
                text = decoder.decode(data)
            except UnicodeDecodeError as error:
                if self.errors != "replace":
                    self._refuse(offset - len(state[0]) + error.start, error.object[error.start])
                self.replaced = True
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                decoder.setstate(state)
                text = decoder.decode(data)
            offset += len(data)
            if text:
                yield text
        state = decoder.getstate()
        try:
            text = decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            if self.errors != "replace":
                self._refuse(offset - len(state[0]), error.object[0])
            self.replaced = True
            text = "\ufffd"
        if text:
            yield text

    def _chunks(self) -> Iterator[bytes]:
        if self.compression:
            with open_plain_bytes(self.path, self.compression) as file:
                data = self._behind_mark(file.read(CHUNK_BYTES))
                while data:
                    yield data
                    data = file.read(CHUNK_BYTES)
            return
        start = self.start
        with self.path.open("rb") as file:
            file.seek(start)
            while start < self.stop and (data := file.read(min(CHUNK_BYTES, self.stop - start))):
                yield self._behind_mark(data) if start == 0 else data
                start += len(data)

    def _behind_mark(self, data: bytes) -> bytes:
        """The first bytes of the file without a byte order mark."""
        if kind := utf16(data[:HEAD_BYTES]):
            raise BadDataError(not_utf8(self.path, kind))
        return data.removeprefix(BOM)

    def _refuse(self, offset: int, byte: int) -> None:
        """Raises, for the byte at `offset` behind the part's start or the byte order mark."""
        line, column, seen = 1, 0, 0
        with open_plain_bytes(self.path, self.compression) as file:
            data = file.read(HEAD_BYTES)
            if not self.compression:
                offset += self.start
            if data.startswith(BOM) and (self.compression or self.start == 0):
                offset += len(BOM)
            while seen < offset and (data := data[: offset - seen]):
                line += data.count(b"\n")
                last = data.rfind(b"\n")
                column = len(data) - last - 1 if last >= 0 else column + len(data)
                seen += len(data)
                data = file.read(CHUNK_BYTES)
        where = f"{shown(self.path)}:{line}:{column}"
        raise BadDataError(
            f"{where}: byte {byte:#04x} is not UTF-8; convert the file, or give --errors replace "
            "or skip"
        )


def utf16(head: bytes) -> str | None:
    """The name of the encoding of a file that begins with `head`, where that is UTF-16."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if len(head) >= HEAD_BYTES:  # of ASCII, without a mark
        low, high = head[::2], head[1::2]
        for kind, letters, zeros in (("UTF-16LE", low, high), ("UTF-16BE", high, low)):
            if all(letters) and not any(zeros):
                return kind
    return None


def not_utf8(path: Path, kind: str) -> str:
    """What to type for a file in another encoding."""
    return (
        f"{shown(path)} is {kind}, not UTF-8; convert it: iconv -f {kind} -t UTF-8 FILE > NEWFILE"
    )


def next_border(path: Path, position: int) -> int:
    """The first byte at or behind `position` where a text may be cut; its ends are borders."""
    size = path.stat().st_size
    if position <= 0 or position >= size:
        return min(max(position, 0), size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _BORDER.search(data, position - 1)
        return found.end() if found else size
