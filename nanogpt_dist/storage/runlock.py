"""One run per folder: a lock that dies with its holder, also by SIGKILL."""

import errno
import fcntl
import json
import os
import re
import shlex
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from nanogpt_dist.errors import CannotCreateError, StorageError
from nanogpt_dist.storage.durable import make_folder, open_regular, read_small, shown
from nanogpt_dist.storage.shallow_json import parse_json

LOCK = "run.lock"
TRIES = 5
# of flock, on Lustre and NFS that were mounted without it
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class RunLock:
    """`with RunLock(folder):` holds the run folder for this process; a second one is refused.

    The file `name` in it says who holds the lock or held it last, and stays: the lock is the flock
    on it, not its existence. The holder may remove it as the last thing.

    flag: the option that names another folder; called: the folder that messages name.

    Raises: CannotCreateError on entry, with the holder's host, process id and start time.
    """

    def __init__(
        self,
        folder: Path,
        name: str = LOCK,
        flag: str = "--out-dir",
        called: Path | None = None,
    ) -> None:
        self.path, self.flag, self.called = folder / name, flag, called or folder
        self._fd: int | None = None
        # of the folder itself: tells whether the name still means it
        self._folder_fd: int | None = None

    def __enter__(self) -> Self:
        assert self._fd is None, "held already"
        try:
            while self._fd is None:
                make_folder(self.path.parent)
                self._fd = self._flock()
            self._folder_fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # else a worker that outlives us would keep the lock
            os.register_at_fork(after_in_child=self._close)
            with suppress(OSError):  # the note is for people: a full disk shows where it matters
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, _holder(), 0)
        except OSError as error:
            reason = self._refusal(error)
            self._close()
            raise CannotCreateError(reason) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._close()

    def refuse_moved(self) -> None:
        """Raises StorageError where the folder was renamed or deleted.

        Writing by its name would make another folder. A failure to look proves nothing, and passes.
        """
        assert self._folder_fd is not None, "not held"
        mine = os.fstat(self._folder_fd)
        try:
            if os.path.samestat(os.stat(self.path.parent), mine):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return
        was, now = shown(self.called), self._place()
        if now is None:
            raise StorageError(
                f"{was} was deleted or moved away while it trained; find it, or start again"
            )
        raise StorageError(
            f"{was} was renamed while it trained; go on with: "
            f"{shlex.join(['nanogpt', 'train', str(now)])}"
        )

    def _place(self) -> Path | None:
        """Where the folder is now; None where it is gone, or the system does not say."""
        try:
            place = Path(os.readlink(f"/proc/self/fd/{self._folder_fd}"))
        except OSError:
            return None
        return place if place.is_dir() else None

    def _flock(self) -> int | None:
        """A descriptor with the lock; None where the file or its folder was removed meanwhile."""
        try:
            self._fd = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
            for attempt in range(TRIES):
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # maybe lock_holder() only looks at it, for a moment
                    if attempt == TRIES - 1:
                        raise
                    time.sleep(0.02)
            if os.stat(self.path).st_ino == os.fstat(self._fd).st_ino:
                return self._fd
        except FileNotFoundError:
            pass
        self._close()
        return None

    def _close(self) -> None:
        """Releases the lock. In a forked child it closes the child's descriptors only."""
        for fd in (self._fd, self._folder_fd):
            if fd is not None:
                os.close(fd)
        self._fd = self._folder_fd = None

    def _refusal(self, error: OSError) -> str:
        folder = shown(self.called)
        if isinstance(error, BlockingIOError) and self._fd is not None:
            holder = _read_holder(self._fd)
            return (
                f"{folder} is in use by {holder}; stop that run, or name another folder with "
                f"{self.flag}"
            )
        if error.errno in WITHOUT_LOCKS:
            return (
                f"cannot lock {folder}: its file system has no flock; mount it with flock, or name "
                f"a folder elsewhere with {self.flag}"
            )
        return (
            f"cannot lock {folder}: {error.strerror}; name a folder with {self.flag} that you may "
            "write to"
        )


def lock_holder(path: Path) -> str | None:
    """The note of the process that holds the lock at `path`, or None."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return read_small(path).decode(errors="replace")
    except OSError:
        return None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`.

    True also where the lock cannot be asked, so that no living run is called dead.
    """
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _holder() -> bytes:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}).encode()
        + b"\n"
    )


def _read_holder(fd: int) -> str:
    """Who holds the lock, in words; odd characters of the file become `?`."""
    try:
        note = parse_json(os.pread(fd, 1000, 0))
        host, pid, started = (
            re.sub(r"[^\w.:+-]", "?", str(note[key]))[:40] for key in ("host", "pid", "started")
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # it holds the lock, but has not written the note yet
        return "another process"
    return f"process {pid} on {host} since {started}"
