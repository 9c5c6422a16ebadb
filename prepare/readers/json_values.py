"""Values of JSON one behind the other, over as many lines as they take, or the same in one array.

`json.dump(rows, file)`, `jq` and `python -m json.tool` write such files. They are read from their
start to their end, a value at a time.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16  # of a file, by which it is known
_DECODER = json.JSONDecoder(parse_int=float)
_BETWEEN = re.compile(r"[ \t\r\n,\[\]\ufeff]*")  # values, whether in an array or not
_NUMBER = re.compile(r"[-+.0-9eE]*")


def holds_values(head: bytes) -> bool:
    """Whether a file holds an array, or objects over several lines, by its `head`.

    Else it has one object a line.
    """
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    if not text.startswith("{"):
        return text.startswith("[")
    try:
        return "\n" in text[: _DECODER.raw_decode(text)[1]]
    except (ValueError, RecursionError):
        first, _, rest = text.partition("\n")
        return first.strip() == "{" and rest.lstrip().startswith('"')


def values(file: BinaryIO, at_most: int) -> Iterator[tuple[int, bytes]]:
    """The line on which each value begins, and its bytes as they stand there.

    Raises ValueError with line and reason, also where the file ends within an array, or a value has
    more than `at_most` characters. OSError.
    """
    reader = _Reader(file, at_most)
    while reader.skip_to_value():
        yield reader.take()


class _Reader:
    """A file as text, of which only the part at hand is held.

    Bytes that are not UTF-8 stay as they are.
    """

    def __init__(self, file: BinaryIO, at_most: int) -> None:
        self.file, self.at_most = file, at_most
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.text, self.at, self.ended = "", 0, False
        self.line, self.depth = 1, 0  # of `at`; of the arrays around it

    def read_on(self) -> None:
        data = self.file.read(max(CHUNK_BYTES, len(self.text) - self.at))
        self.ended = not data
        self.text, self.at = self.text[self.at :] + self.decode(data, final=self.ended), 0

    def skip_to_value(self) -> bool:
        """Whether there is one more."""
        while True:
            between = _BETWEEN.match(self.text, self.at)
            assert between
            self.pass_by(between.end())
            self.depth += between[0].count("[") - between[0].count("]")
            if self.depth < 0:
                raise ValueError(f"{self.line}: not JSON (a ] without its [)")
            if self.at < len(self.text):
                return True
            if self.ended:
                if self.depth:
                    raise ValueError(f"{self.line}: the array has no end: cut off?")
                return False
            self.read_on()

    def take(self) -> tuple[int, bytes]:
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
                whole = (
                    end < len(self.text) or self.ended or not _NUMBER.fullmatch(self.text, self.at)
                )
                reason = ""
            except (ValueError, RecursionError) as error:
                whole, reason = self.ended, "too deep"
                if isinstance(error, json.JSONDecodeError):
                    reason = error.msg
            if whole and not reason:
                break
            if whole or reason == "too deep":
                raise ValueError(f"{self.line}: not JSON ({reason} in the value that begins here)")
            if len(self.text) - self.at > self.at_most:
                raise ValueError(
                    f"{self.line}: not JSON ({reason or 'a number'}), or longer than "
                    f"{self.at_most:,} characters"
                )
            self.read_on()
        found = self.line, self.text[self.at : end].encode(errors="surrogateescape")
        self.pass_by(end)
        return found

    def pass_by(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end
