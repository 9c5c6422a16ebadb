"""A disk that fails, dies or loses power at a chosen operation, under real code in this process.

FailingDisk counts and records what changes the disk: create, write, pwrite, fsync, rename, mkdir,
unlink, rmdir. PowerCut says from such a record what may be on the disk afterwards. It is strict:
before its folder's fsync each change of a name may be missing, whatever came later; before its own
fsync a file may be empty, cut, zeros or whole. in_order: as a journal has it, names change in the
order of the operations: those before some moment are there, those after it are not.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Operation = tuple[Any, ...]  # (kind, path, …)


class Killed(BaseException):
    """The process is gone: nothing that comes later, no clean-up either, reaches the disk."""


class FailingDisk:
    """`with disk.watch():` patches `os`; operation number `at` raises OSError(error), or kills for
    error=None.
    """

    def __init__(self, at: int | None = None, error: int | None = None) -> None:
        self.at, self.error = at, error
        self.operations: list[Operation] = []
        self.failed: Operation | None = None  # the one that raised or killed
        self.count = 0
        self.dead = False
        self._names: dict[int, str] = {}

    def _reach(self, *operation: Any) -> None:
        if self.dead:
            raise Killed
        if self.count == self.at:
            self.count += 1
            self.failed = operation
            self.dead = self.error is None
            raise Killed if self.dead else OSError(self.error, os.strerror(self.error or 0))
        self.count += 1
        self.operations.append(operation)

    def _path(self, path: Any, dir_fd: int | None) -> str:
        return os.fspath(path) if dir_fd is None else os.path.join(self._names[dir_fd], path)

    @contextmanager
    def watch(self) -> Iterator[None]:
        real_open, real_write, real_pwrite = os.open, os.write, os.pwrite

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            name = self._path(path, dir_fd)
            if flags & os.O_CREAT:
                self._reach("create", name)
            fd = real_open(path, flags, mode, dir_fd=dir_fd)
            self._names[fd] = name
            return fd

        def written(fd: int, data: Any) -> int:
            self._reach("write", self._names[fd], bytes(data))
            return real_write(fd, data)

        def placed(fd: int, data: Any, offset: int) -> int:
            self._reach("pwrite", self._names[fd], bytes(data), offset)
            return real_pwrite(fd, data, offset)

        def synced(fd: int) -> None:
            # and nothing more: the process lives, the disk is a model
            self._reach("fsync", self._names[fd])

        def moved(real: Any) -> Any:
            def rename(old: Any, new: Any) -> None:
                self._reach("rename", os.fspath(old), os.fspath(new))
                real(old, new)

            return rename

        def single(kind: str, real: Any) -> Any:
            def change(path: Any, *args: Any, dir_fd: int | None = None) -> None:
                self._reach(kind, self._path(path, dir_fd))
                real(path, *args, dir_fd=dir_fd)

            return change

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", opened)
            patch.setattr(os, "write", written)
            patch.setattr(os, "pwrite", placed)
            patch.setattr(os, "fsync", synced)
            for name in ("rename", "replace"):
                patch.setattr(os, name, moved(getattr(os, name)))
            for name in ("mkdir", "unlink", "rmdir"):
                patch.setattr(os, name, single(name, getattr(os, name)))
            yield


@dataclass
class File:
    data: bytes = b""
    durable: bytes = b""

    def fsync(self) -> None:
        self.durable = self.data

    def put(self, path: Path, draw: random.Random, in_order: bool) -> None:
        cut = draw.randrange(len(self.data) + 1)
        zeros = self.data[:cut] + bytes(len(self.data) - cut)
        states = (
            [self.durable, self.data, self.data[:cut], zeros]
            if self.data != self.durable
            else [self.data]
        )
        path.write_bytes(draw.choice(states))


@dataclass
class Folder:
    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    # name gone, name new, what
    pending: list[tuple[str | None, str | None, Any]] = field(default_factory=list)

    def change(self, gone: str | None, new: str | None, what: Any = None) -> None:
        self.pending.append((gone, new, what))
        _apply(self.entries, gone, new, what)

    def fsync(self) -> None:
        self.durable, self.pending = dict(self.entries), []

    def put(self, path: Path, draw: random.Random, in_order: bool) -> None:
        path.mkdir()
        entries = dict(self.entries if in_order else self.durable)
        for change in () if in_order else self.pending:
            if draw.random() < 0.5:
                _apply(entries, *change)
        for name, entry in entries.items():
            entry.put(path / name, draw, in_order)


def _apply(entries: dict[str, Any], gone: str | None, new: str | None, what: Any) -> None:
    if gone is not None:
        entries.pop(gone, None)
    if new is not None:
        entries[new] = what


def _on_disk(path: Path) -> "File | Folder":
    if path.is_file():
        return File(path.read_bytes(), path.read_bytes())
    entries = {entry.name: _on_disk(entry) for entry in path.iterdir()}
    return Folder(dict(entries), entries)


class PowerCut:
    """The disk under `root` before a recorded session; replay some operations, then see what a
    power cut may leave.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, _on_disk(root)

    def _find(self, path: str) -> Any:
        entry: Any = self.top
        for part in Path(path).relative_to(self.root).parts:
            entry = entry.entries[part]
        return entry

    def replay(self, operations: Sequence[Operation]) -> None:
        for kind, path, *more in operations:
            folder, name = os.path.split(path)
            if kind == "write":
                self._find(path).data += more[0]
            elif kind == "pwrite":
                data, (new, offset) = self._find(path).data, more
                self._find(path).data = data[:offset] + new + data[offset + len(new) :]
            elif kind == "fsync":
                self._find(path).fsync()
            elif kind in ("create", "mkdir"):
                self._find(folder).change(None, name, File() if kind == "create" else Folder())
            elif kind == "rename":
                self._find(folder).change(name, os.path.basename(more[0]), self._find(path))
            elif kind in ("unlink", "rmdir"):
                self._find(folder).change(name, None)

    def put(self, path: Path, draw: random.Random, in_order: bool = False) -> None:
        """Writes one state that a power cut now may leave to the new folder `path`.

        in_order: now is the moment up to which names have changed; what came later, but for an
        fsync, may have been done, too.
        """
        self.top.put(path, draw, in_order)


def acknowledged(operations: Sequence[Operation], end: int, in_order: bool = False) -> list[str]:
    """What ("ack", what) among `operations` must last if the power goes after the first `end`.

    in_order: if the names on the disk are those after the first `end`, so that the power may have
    gone at any time before the next fsync.
    """
    while in_order and end < len(operations) and operations[end][0] != "fsync":
        end += 1
    return [what for kind, what, *_ in operations[:end] if kind == "ack"]
