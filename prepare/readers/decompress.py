"""The plain bytes of a file that may be compressed.

gzip or zstandard, in any number of members or frames.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_dist.errors import BadDataError, clipped
from nanogpt_dist.storage.durable import shown

# of zstandard, as `zstd --long=31` writes it: so much memory may the reading of a file take
MAX_WINDOW = 1 << 31
# of a frame at a time: they may hold 32,768 times as much, all of which is then in memory
READ_BYTES = 1 << 12
_SKIPPED = b"\x2a\x4d\x18"  # behind the first byte of a frame of zstandard with no data in it
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


@contextmanager
def open_plain_bytes(path: Path, compression: str) -> Iterator[BinaryIO]:
    """The file, decompressed as it is read; it cannot be read backwards.

    Raises BadDataError where it is damaged, cut off, or not what its name says; OSError.
    """
    import zstandard

    with path.open("rb") as raw:
        try:
            if compression == ".gz":
                yield gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[misc]
            elif compression == ".zst":
                yield io.BufferedReader(_ZstandardReader(raw), 1 << 20)
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise BadDataError(_reason(path, compression, str(error))) from None


def _reason(path: Path, compression: str, error: str) -> str:
    with path.open("rb") as raw:
        head = raw.read(4)
    if "Dictionary" in error:
        return (
            f"{shown(path)} needs the dictionary that it was compressed with; unpack it: zstd -d "
            "-D DICTIONARY FILE"
        )
    for other, magic in _MAGIC.items():
        if other != compression and head.startswith(magic):
            return (
                f"{shown(path)} is a {other} file, whatever its name says; rename it to end in "
                f"{other}"
            )
    if head and not head.startswith(_MAGIC[compression]) and head[1:] != _SKIPPED:
        return (
            f"{shown(path)} is not compressed: rename it without {compression}; or damaged at its "
            "start: get it again"
        )
    return f"{shown(path)} is damaged or cut off ({clipped(error, 60)}); get it again"


class _ZstandardReader(io.RawIOBase):
    """Frames one after the other.

    Unlike the library's own reader it notices when the last one is cut off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.frame = raw, None
        self.compressed, self.plain = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.plain:
            self.compressed = self.compressed or self.raw.read(READ_BYTES)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self.plain = memoryview(self._advance())  # whose rest is no copy
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size

    def _advance(self) -> bytes:
        import zstandard

        frame: Any = (
            self.frame or zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        )
        plain = frame.decompress(self.compressed)
        self.frame, self.compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
        return plain
