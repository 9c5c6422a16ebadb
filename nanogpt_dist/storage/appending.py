"""Files of a run that grow by lines: metrics.jsonl, events.jsonl, attempts.jsonl, samples.jsonl.

A run folder may come from somebody else: nothing is appended behind a link, which may lead to any
file of the user's, and a pipe, which would be waited for, is no such file either.
"""

import os
import stat
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from nanogpt_dist.storage.durable import OddFileError, write_all


def open_to_append(path: Path) -> FileIO:
    """A regular file, or a new one, for appending and reading, without a buffer.

    Raises: OddFileError for a symbolic link, a folder, a pipe or a device; another OSError.
    """
    refuse_odd(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # put there since
        os.close(fd)
        raise OddFileError(path)
    return FileIO(fd, "a+b")


def refuse_odd(path: Path) -> None:
    """Raise OddFileError where something else than a regular file has this name; OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OddFileError(path)


def append_lines(path: Path, lines: Iterable[str], sync: bool = False) -> None:
    """Append `lines`, at once. A last line that was torn is ended first, lest it swallow them.

    sync: make them durable. Raises OSError, as open_to_append(); a part may be written then.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    with open_to_append(path) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        write_all(file.fileno(), data)
        if sync:
            os.fsync(file.fileno())
