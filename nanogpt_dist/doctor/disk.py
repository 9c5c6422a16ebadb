"""Where runs and temporary files go: may it be written, how fast, how much is left."""

import errno
import fcntl
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.variables import gpu_files
from nanogpt_dist.errors import Exit
from nanogpt_dist.storage.durable import FULL, shown, staging_name

MB, GB = 10**6, 10**9
PIECE = b"\xa5" * (4 << 20)
WRITE_BYTES, WRITE_S = 64 << 20, 2.0  # written at most, for so long at most
SLOW_MB_S = 20.0  # a checkpoint of GPT-2 124M, 1.5 GB, then takes more than a minute
LITTLE_BYTES = 5 * GB  # three such checkpoints
FEW_INODES = 1000
SHM_BYTES = 1 << 30
SOCKET_PATH = 70  # bytes of a folder in which a socket's name of 108 still fits


def check_disk(machine: Machine) -> Iterator[Check]:
    """The folder of runs, temporary files, shared memory."""
    yield from _check_folder(machine)
    yield _check_temporary(machine)
    if sys.platform == "linux":
        yield _check_shared_memory(machine)


def _check_folder(machine: Machine) -> Iterator[Check]:
    folder = existing(machine.folder)
    where = f"{shown(folder)} ({kind_of(machine, folder)})"
    change = f"cd {shlex.quote(str(Path.home()))}  # or --out-dir on another disk"
    try:
        speed, latency = write_speed(folder)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in FULL:
            yield Check("disk", "error", f"{where}: {why}", _make_room(folder), Exit.IO_ERROR)
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            text = f"{where} may not be written: {why}"
            yield Check("disk", "error", text, change, Exit.CANNOT_CREATE)
        else:
            text = f"{where} cannot be written: {why}"
            yield Check("disk", "error", text, "dmesg | tail", Exit.IO_ERROR)
        return
    text = f"{where}: {speed:,.0f} MB/s with fsync, {1e3 * latency:,.1f} ms for a small file"
    if speed < SLOW_MB_S:
        yield Check("disk", "warning", text, change)
    else:
        yield Check("disk", "ok", text)
    free, numbers = shutil.disk_usage(folder).free, os.statvfs(folder)
    if free < LITTLE_BYTES:
        text = f"{free / GB:,.1f} GB are free in {where}"
        yield Check("free space", "warning", text, _make_room(folder))
    elif numbers.f_files and numbers.f_favail < FEW_INODES:
        text = f"{numbers.f_favail:,} more files may be made in {where}"
        yield Check("free space", "warning", text, f"df -i {shlex.quote(str(folder))}")
    else:
        yield Check("free space", "ok", f"{free / GB:,.1f} GB in {shown(folder)}")


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((each for each in [folder, *folder.parents] if each.is_dir()), Path("/"))


def _make_room(folder: Path) -> str:
    return f"df -h {shlex.quote(str(folder))}; nanogpt checkpoint prune RUN --dry-run"


def write_speed(folder: Path) -> tuple[float, float]:
    """MB/s of a file with its fsync, and seconds of a small one. All is removed again.

    Raises OSError, also where a file cannot be locked, as a run's is.
    """
    path = folder / staging_name("doctor")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        start = time.perf_counter()
        os.write(fd, b"?" * 4096)
        os.fsync(fd)
        latency = time.perf_counter() - start
        most = min(WRITE_BYTES, shutil.disk_usage(folder).free // 4)
        start, written = time.perf_counter(), 0
        while written < most and time.perf_counter() < start + WRITE_S:
            written += os.write(fd, PIECE)
            os.fsync(fd)
        seconds = time.perf_counter() - start
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
    return (written / MB / seconds if written else 0.0), latency


def kind_of(machine: Machine, folder: Path) -> str:
    """The kind of file system that `folder` is on: ext4, nfs4, tmpfs …"""
    best, kind = "", "unknown"
    for line in machine.read("proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\040", " ", before.split(" ")[4])
        inside = str(folder) == place or str(folder).startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, after.split(" ")[0]
    return kind


def _check_temporary(machine: Machine) -> Check:
    """Where Python, the compiler and worker processes put their files."""
    name = "temporary files"
    named = machine.environment.get("TMPDIR")
    folder = Path(named or "/tmp")
    undo = "unset TMPDIR" if named else "mkdir -p ~/tmp && export TMPDIR=~/tmp"
    if not folder.is_dir():
        return Check(name, "error", f"TMPDIR={folder} is no folder", undo, Exit.MISSING_INPUT)
    if len(os.fsencode(folder.absolute())) > SOCKET_PATH:
        text = f"TMPDIR={shown(folder)} is too long: workers cannot make a socket in it"
        return Check(name, "error", text, undo)
    probe = folder / staging_name("doctor")
    try:
        probe.write_bytes(b"?" * 4096)
    except OSError as error:
        text = f"{shown(folder)} cannot be written: {error.strerror}"
        return Check(name, "error", text, undo, Exit.CANNOT_CREATE)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        text = f"{shown(folder)} is mounted noexec: what torch.compile makes there cannot be run"
        return Check(name, "warning", text, undo)
    free = shutil.disk_usage(folder).free
    if free < GB:
        return Check(name, "warning", f"{free / MB:,.0f} MB are free in {shown(folder)}", undo)
    return Check(name, "ok", f"{free / GB:,.1f} GB in {shown(folder)}")


def _check_shared_memory(machine: Machine) -> Check:
    """NCCL and worker processes exchange what they have through /dev/shm."""
    place = machine.root / "dev/shm"
    todo = "sudo mount -o remount,size=16G /dev/shm  # docker run --shm-size=16g"
    several = gpu_files(machine) > 1  # NCCL is for these
    try:
        numbers = os.statvfs(place)
    except OSError as error:
        text = f"/dev/shm: {error.strerror}"
        return Check("shared memory", "warning" if several else "ok", text, todo if several else "")
    size, free = (each * numbers.f_frsize for each in (numbers.f_blocks, numbers.f_bavail))
    text = f"/dev/shm has {size / GB:,.2f} GB, {free / GB:,.2f} GB of them free"
    if size < SHM_BYTES and several:
        return Check("shared memory", "warning", f"{text}: NCCL needs more", todo)
    if free < SHM_BYTES and several:
        return Check("shared memory", "warning", text, "ls -lhS /dev/shm | head")
    if not os.access(place, os.W_OK):
        todo = "sudo chmod 1777 /dev/shm"
        return Check("shared memory", "error", "/dev/shm may not be written", todo)
    return Check("shared memory", "ok", text)
