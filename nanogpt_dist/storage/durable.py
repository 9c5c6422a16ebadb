"""Single files on disk, written whole or not at all; an error is one line."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from nanogpt_dist.errors import BadDataError, StorageError

SHOWN = 60  # characters of a path that an error line shows
FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_BYTES = 64 << 20  # of a file that is held in memory whole, where its reader says no other


class OddFileError(OSError):
    """Something else than a regular file has a file's name: a link, a folder, a pipe, a device."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "is not a regular file", str(path))


def shown(path: Path) -> str:
    """`path` for an error line: its end, which names the file, when it is long."""
    text = str(path)
    return text if len(text) <= SHOWN else f"…{text[1 - SHOWN :]}"


def printable(path: Path | str) -> str:
    """A path as text that any file can hold, also where its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


@contextmanager
def storage_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError about `path`.

    needed: bytes that the block writes, for the message on a full disk.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_reason(error, path, needed)) from error


def _reason(error: OSError, path: Path, needed: int | None) -> str:
    if isinstance(error, OddFileError):
        return (
            f"{shown(path)} is a link, a folder, a pipe or a device where a run keeps a file; "
            "move it away, then run the same command again"
        )
    if error.errno in FULL:
        if error.errno == errno.ENOSPC and _is_out_of_files(path):
            return (
                f"disk full: no more files may be made at {shown(path)}, as df -i says; remove "
                "some, then run the same command again"
            )
        what = "quota used up" if error.errno == errno.EDQUOT else "disk full"
        return _full(what, path, needed)
    if error.errno == errno.EFBIG:
        return (
            f"{shown(path)}: a larger file than ulimit -f or this disk allows; type ulimit -f "
            "unlimited, then run the same command again"
        )
    why = error.strerror or str(error)
    return (
        f"{shown(path)}: {why}; check the disk and the permissions, then run the same command again"
    )


def _full(what: str, path: Path, needed: int | None) -> str:
    need = "" if needed is None else f" needs at least {needed:,} bytes"
    return (
        f"{what}: {shown(path)}{need}, {free_told(path)} are free; make room, then run the same "
        "command again"
    )


def _is_out_of_files(path: Path) -> bool:
    """Whether a disk has bytes left, but no inodes. Some have no such limit, and say 0 of 0."""
    try:
        numbers = _statvfs(path)
    except OSError:
        return False
    return numbers.f_files > 0 and numbers.f_favail == 0 and numbers.f_bavail > 0


def free_told(path: Path) -> str:
    """free_bytes() for a message about an error, after which the disk may not answer."""
    try:
        return f"{free_bytes(path):,}"
    except OSError:
        return "nobody knows how many"


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is, or will be. Raises: OSError."""
    numbers = _statvfs(path)
    # a part of some disks is reserved for root
    blocks = numbers.f_bfree if os.geteuid() == 0 else numbers.f_bavail
    return blocks * numbers.f_frsize


def has_room(path: Path, needed: int) -> bool:
    """Whether `needed` bytes may still be written where `path` is, or will be. Raises: OSError.

    True also for a disk that does not say how large it is, as some network's.
    """
    return free_bytes(path) >= needed or _statvfs(path).f_blocks == 0


def require_room(path: Path, needed: int) -> None:
    """Returns if has_room(). Raises: StorageError."""
    with storage_errors(path):
        if not has_room(path, needed):
            raise StorageError(_full("disk full", path, needed))


def _statvfs(path: Path) -> os.statvfs_result:
    while not path.exists():
        path = path.absolute().parent
    return os.statvfs(path)


def staging_name(name: str, kind: str = "tmp") -> str:
    """A new hidden name for a file that is being written (`tmp`) or deleted (`trash`).

    steps.sweep() recognizes it.
    """
    # not from `random`: the run's generators stay as they are
    return f".{kind}-{name}-{secrets.token_hex(4)}"


def open_plain(path: Path) -> BufferedReader:
    """Opens a regular file for reading.

    Raises: OSError, also for a symbolic link, a folder, a pipe or a device.
    """
    return open_regular(path, os.O_NOFOLLOW)


def open_regular(path: Path, flags: int = 0) -> BufferedReader:
    """As open_plain(), but a link is followed: a file of a user's, or of the hub's cache.

    flags: more of those of os.open().
    """
    # a pipe must not block us
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(fd, "rb")


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file; a link is followed.

    Raises: OSError; BadDataError for one of more than `most` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadDataError(
            f"{shown(path)} is longer than {most:,} bytes, which no such file is; restore it"
        )
    return data


def sha256_file(path: Path) -> str:
    """The sha256 of a file in hexadecimal, read in pieces. Raises: StorageError."""
    with storage_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_and_hash(path: Path) -> str:
    """Makes a file's bytes durable and returns their sha256. Raises: StorageError."""
    with storage_errors(path), open_plain(path) as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder durable: files created, renamed and removed. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents, durably; fine if it exists. Raises: OSError."""
    if path.is_dir():
        return
    if path.is_symlink():  # a disk that is not mounted: its place must not be filled
        raise FileNotFoundError(
            errno.ENOENT,
            f"it links to {shown(path.readlink())}, which is no folder here",
            str(path),
        )
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Creates `path`, which must not exist, and makes `data` durable.

    The name itself is durable only after fsync_folder().

    Raises: OSError; then a part of the file may be there.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def usual_mode(path: Path) -> int:
    """The mode that a new file `path` gets here, by the umask and the folder's rules.

    For files that a library writes through a temporary one, which only its owner may read.

    Raises: OSError.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


@contextmanager
def _replacing(path: Path, needed: int) -> Iterator[Path]:
    """Yields a new path beside `path` for the block to write, then renames it to `path`.

    needed: bytes that the block writes.

    Raises: StorageError, with nothing left behind.
    """
    tmp = path.with_name(staging_name(path.name))
    with storage_errors(path, needed):
        try:
            yield tmp
            os.replace(tmp, path)
        except BaseException:
            with suppress(OSError):
                tmp.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replaces `path` by `data`: after a crash the old content is there or the new one, whole.

    mode: the permissions of the new file; None: what the umask gives.

    Raises: StorageError, with nothing left behind. If only the last step failed, the folder's
    fsync, the new content stands but may not outlive a power cut.
    """
    with _replacing(path, len(data)) as tmp:
        write_new(tmp, data)
        if mode is not None:
            tmp.chmod(mode)


def copy_atomic(source: Path, path: Path) -> None:
    """Replaces `path` by a copy of a large file, whole or not at all. Raises: StorageError."""
    with (
        _replacing(path, source.stat().st_size) as tmp,
        open_plain(source) as file,
        tmp.open("xb") as copy,
    ):
        shutil.copyfileobj(file, copy, 8 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data` to a descriptor. Raises: OSError."""
    rest = memoryview(data)
    while rest:  # write() may take less than it is given
        rest = rest[os.write(fd, rest) :]


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder with its content. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
