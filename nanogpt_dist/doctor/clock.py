"""The clock: ahead or behind, and beside that of the server that has the files."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import nanogpt_dist
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.disk import existing
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.storage.durable import staging_name

OFF_S = 2.0
SET = "sudo chronyc makestep  # or: sudo timedatectl set-ntp true"
TIME_ERROR = 5  # of adjtimex(2): not synchronized


def check_clock(machine: Machine) -> Iterator[Check]:
    """It is not before what is installed was written, and not beside the clock of the disk."""
    now = machine.now()
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    written = Path(nanogpt_dist.__file__).stat().st_mtime
    if now < written - OFF_S:
        text = f"{shown} is before this program was installed: certificates and logs are wrong"
        yield Check("clock", "error", text, SET)
        return
    off = _off_from_disk(machine)
    if off is not None and abs(off) > OFF_S:
        where = existing(machine.folder)
        text = f"{shown}; the clock of the disk of {where} is {off:+.0f} s off it"
        yield Check("clock", "warning", text, SET)
        return
    synchronized = _synchronized()
    ntp = "" if synchronized is None else ", kept by NTP" if synchronized else ", not kept by NTP"
    yield Check("clock", "ok", f"{shown}{ntp}")


def _off_from_disk(machine: Machine) -> float | None:
    """Seconds by which the time of a new file is later than that of this machine's clock."""
    probe = existing(machine.folder) / staging_name("doctor")
    with suppress(OSError):
        try:
            before = machine.now()
            probe.write_bytes(b"")
            after = machine.now()
            written = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return written - after if written > after else min(0.0, written - before)
    return None


def _synchronized() -> bool | None:
    """Whether the kernel says that its clock is kept in step; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    with suppress(AttributeError, OSError):
        timex = ctypes.create_string_buffer(512)  # modes = 0: only ask; the struct has 208 bytes
        state = ctypes.CDLL(None).adjtimex(timex)
        return None if state < 0 else state != TIME_ERROR  # below 0: it may not be asked here
    return None
