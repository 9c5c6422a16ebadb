"""Files of JSON lines: metrics.jsonl, events.jsonl, samples.jsonl. No torch."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from nanogpt_dist.storage.durable import MOST_BYTES, open_regular
from nanogpt_dist.storage.shallow_json import parse_json

Line = dict[str, Any]
TAIL = 64  # bytes before the end of what was read, which tell whether a file was replaced
BLOCK = 4 << 20  # bytes that are read at once


class JsonLines:
    """The objects of a file of JSON lines that grows; each line is read once.

    What is no object is left out; a last line without its end waits until it is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects: list[Line] = []
        self._offset, self._tail = 0, b""

    def read(self) -> list[Line]:
        """All objects, oldest first; [] where there is no file. The list grows with the file.

        Raises OSError where the file cannot be read.
        """
        try:
            with open_regular(self.path) as file:
                file.seek(self._offset - len(self._tail))
                if file.read(len(self._tail)) != self._tail:  # another file by now
                    self._forget()
                    file.seek(0)
                pending = b""
                while block := file.read(BLOCK):
                    pending = self._take(pending + block)
                    if len(pending) > MOST_BYTES:  # no line of ours, and it would be held whole
                        pending = self._take(pending, whole=True)
                if pending and _object(pending) is not None:  # others' may lack the last end
                    self._take(pending, whole=True)
        except (FileNotFoundError, NotADirectoryError):
            self._forget()
        return self._objects

    def _forget(self) -> None:
        self._objects, self._offset, self._tail = [], 0, b""

    def _take(self, data: bytes, whole: bool = False) -> bytes:
        """Read the lines of `data`; returns what stands behind the last that has its end."""
        end = len(data) if whole else data.rfind(b"\n") + 1
        read = data[:end]
        self._objects += [found for line in read.split(b"\n") if (found := _object(line))]
        self._offset, self._tail = self._offset + end, (self._tail + read[-TAIL:])[-TAIL:]
        return data[end:]


def _object(line: bytes) -> Line | None:
    with contextlib.suppress(ValueError):
        found = parse_json(line)
        # the keys of all lines are the same few texts
        return {sys.intern(key): found[key] for key in found} if isinstance(found, dict) else None
    return None
