"""The files of a data folder: checked against their records, and held open a few at a time."""

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np

from nanogpt_dist.data.manifest import MANIFEST, FileRecord
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import open_plain, shown, storage_errors

# shards of one folder; a process may have 256 (macOS) or 1,024 (Linux) files, and there are other
# users
MAX_OPEN = 64


def refuse_link(path: Path) -> None:
    """Raise BadDataError where `path` is a link: it may lead to a file that is nobody's business.

    Raises StorageError.
    """
    with storage_errors(path):
        if path.is_symlink():
            raise BadDataError(
                f"{shown(path)} is a symbolic link, which is not followed; put the file itself "
                "there"
            )


def check_size(path: Path, record: FileRecord) -> None:
    """Raise BadDataError where `path` is a link, no file, or of another size than recorded.

    Raises StorageError.
    """
    refuse_link(path)
    with storage_errors(path):
        if not path.is_file():
            raise BadDataError(
                f"{shown(path)} is missing; restore a copy or prepare the data again"
            )
        size = path.stat().st_size
    if size != record.bytes:
        raise BadDataError(
            f"{shown(path)} has {size:,} bytes, expected {record.bytes:,}; prepare the data again"
        )


def read_checked(path: Path, record: FileRecord) -> bytes:
    """All bytes of a small file.

    Raises BadDataError where they are not those of the record, StorageError.
    """
    check_size(path, record)
    with storage_errors(path), open_plain(path) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise BadDataError(
            f"{shown(path)} is damaged: its sha256 is not the one in {MANIFEST}; prepare the data "
            "again"
        )
    return data


def read_numbers(path: Path, record: FileRecord, dtype: str) -> np.ndarray:
    """What a sidecar of a shard holds, (N,). Raises as read_checked()."""
    data = read_checked(path, record)
    if len(data) % np.dtype(dtype).itemsize:
        raise BadDataError(f"{shown(path)} ends within a number; prepare the data again")
    return np.frombuffer(data, dtype)


class OpenFile:
    """A file open for reading, until nobody holds this object.

    state: what tells it from a changed one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path), open_plain(path) as file:
            self.fd = os.dup(file.fileno())
            weakref.finalize(self, os.close, self.fd)
            found = os.fstat(self.fd)
        self.state = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes, fewer at the end of the file. Raises StorageError."""
        parts = []
        with storage_errors(self.path):
            while length and (part := os.pread(self.fd, length, offset)):
                parts.append(part)
                length, offset = length - len(part), offset + len(part)
        return b"".join(parts)


class OpenFiles:
    """Files by path, of which those used last stay open, at most `limit`. Threads may share it."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path) -> OpenFile:
        """The file, opened now unless it is open.

        It stays open as long as it is held, also where others push it out.

        Raises StorageError.
        """
        with self._lock:
            if (file := self._files.get(path)) is None:
                file = self._files[path] = OpenFile(path)
            self._files.move_to_end(path)
            while len(self._files) > self.limit:
                self._files.popitem(last=False)
            return file
