"""The output folder while it is being filled: one run at a time, nobody else's files, no half-done leftovers."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanogpt_dist.errors import CannotCreateError
from nanogpt_dist.shards.manifest import MANIFEST
from nanogpt_dist.storage.durable import fsync_folder, make_folder, shown

LOCK = ".prepare.lock"  # there from the first moment to the last: a folder without it is finished, or not ours
TOKENIZER = "tokenizer.json"
_OURS = re.compile(r"\.tmp-.*|tokenizer\.json|[A-Za-z0-9._-]+_(train|val)_\d{6}\.(bin|ends|crc32)")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold `out`, made if need be and cleared of what a killed run left, for the block; undo the block if it fails.

    A folder with a manifest is held as it is. Raises CannotCreateError: in use, not writable, holds other files.
    """
    if out.exists():
        _refuse_strangers(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        make_folder(out)
        lock = _lock(out)
    except BaseException as error:
        _remove_empty(made)
        if not isinstance(error, OSError):
            raise
        raise CannotCreateError(f"cannot write in {shown(out)}: {error.strerror}; choose another --out") from error
    try:
        if not (out / MANIFEST).exists():
            _clear(out)
        yield
    finally:
        if not (out / MANIFEST).exists():
            _clear(out)
        (out / LOCK).unlink(missing_ok=True)
        os.close(lock)
        _remove_empty(made)
        if out.exists():
            fsync_folder(out)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _refuse_strangers(out: Path) -> None:
    if not out.is_dir():
        raise CannotCreateError(f"{shown(out)} is not a folder; choose another --out")
    if (out / MANIFEST).exists():
        return
    names = sorted(path.name for path in out.iterdir())
    if MANIFEST in names:  # another run has finished it just now
        return
    # Without the lock no prepare was at work here, so even a file that is named like ours is somebody's.
    others = [name for name in names if name != LOCK and not _OURS.fullmatch(name)] if LOCK in names else names
    if others:
        raise CannotCreateError(f"{shown(out)} holds {others[0][:40]}, no leftover of prepare; choose another --out")


def _clear(out: Path) -> None:
    for path in out.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()


def _lock(out: Path) -> int:
    """A descriptor that holds the lock; the kernel lets go of it when this process ends, however it ends."""
    while True:
        fd = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = re.sub(r"[^\w .:-]", "?", os.pread(fd, 100, 0).decode(errors="replace")).strip()
            os.close(fd)
            who = holder or "another process"
            raise CannotCreateError(f"{shown(out)} is being prepared by {who}; wait, or choose another --out") from None
        try:
            current = os.stat(out / LOCK).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            current = False
        if current:  # else its last holder has removed it in the meantime
            with suppress(OSError):  # the note is for people: a full disk shows where it matters
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return fd
        os.close(fd)
