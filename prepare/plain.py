"""The plain bytes of a file that may be compressed: gzip or zstandard, in any number of members or frames."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown


@contextmanager
def open_plain_bytes(path: Path, compression: str) -> Iterator[BinaryIO]:
    """The file, decompressed as it is read. Raises BadDataError where it is damaged or cut off; OSError."""
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
