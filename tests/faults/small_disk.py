"""Disks of a few kilobytes, and read-only ones, that only a try and its children see.

They are in a mount namespace of this process's own, so they end with it, however that is.
"""

import ctypes
import os
import subprocess
from pathlib import Path

from tests.faults.row import Missing

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER


def of_its_own() -> None:
    """Give this process, which has one thread, mounts of its own. Raises Missing."""
    user, group = os.getuid(), os.getgid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER):
        raise Missing(f"a mount namespace: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("--make-rprivate", "/")


def mount(folder: Path, size: int) -> Path:
    """A disk in memory of `size` bytes, in whole pages, at the new folder `folder`."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={max(size, 4096)}", "none", str(folder))
    return folder


def change(folder: Path, *options: str) -> None:
    """Mount again with other options: size=N, ro, rw."""
    _mount("-o", ",".join(["remount", *options]), str(folder))


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise Missing("mount") from None
    if done.returncode:
        raise Missing(f"mount: {done.stderr.strip()[:100]}")
