"""Output where a user says: probe the folder first, then write, whatever kind of file is there."""

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from nanogpt_dist.errors import CannotCreateError
from nanogpt_dist.storage.durable import (
    make_folder,
    shown,
    staging_name,
    storage_errors,
    write_all,
    write_atomic,
    write_new,
)


def probe_writable(folder: Path) -> None:
    """Creates `folder` if need be, and writes and removes a file in it.

    Call it before the slow work whose result goes there.

    Raises: CannotCreateError when either fails; then no new folder is left.
    """
    probe = folder / staging_name("probe")
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        make_folder(folder)
        try:
            write_new(probe, b"?")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        for path in new:
            with suppress(OSError):  # it was not made, or somebody has begun to use it
                path.rmdir()
        why = error.strerror or str(error)
        raise CannotCreateError(
            f"cannot write in {shown(folder)}: {why}; name a folder that you may write to"
        ) from error


def write_user_file(path: Path, data: bytes) -> None:
    """Writes `data` to a path that a user names, and keeps the kind of file that is there.

    A regular file is replaced whole and keeps its mode; so does the target of a link, and the link
    stays. A device, a pipe, or what standard output is redirected to, gets the bytes.

    Raises: CannotCreateError where `path` is a folder; StorageError.
    """
    with storage_errors(path):
        try:
            there = os.stat(path)
        except FileNotFoundError:
            there = None  # or a link to what is not there yet
    if there is None:
        write_atomic(Path(os.path.realpath(path)), data)
    elif stat.S_ISDIR(there.st_mode):
        raise CannotCreateError(f"{shown(path)} is a folder; name a file in it")
    elif (stream := _standard_stream(there)) is not None:
        with storage_errors(path):
            write_all(stream, data)
    elif stat.S_ISREG(there.st_mode):
        write_atomic(Path(os.path.realpath(path)), data, stat.S_IMODE(there.st_mode))
    else:
        with (
            storage_errors(path),
            open(
                os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), "wb", buffering=0
            ) as file,
        ):
            write_all(file.fileno(), data)


def _standard_stream(there: os.stat_result) -> int | None:
    """The descriptor, 1 or 2, that is open at this very file, as /dev/stdout is; else None."""
    sys.stdout.flush()  # what was printed before comes before
    for fd in (1, 2):
        with suppress(OSError):  # it may be closed
            if os.path.samestat(os.fstat(fd), there):
                return fd
    return None
