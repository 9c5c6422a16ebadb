"""strace on one thread of a living process, while a block runs: what it asks of the system, and
faults at any of that, in whatever language the code is.

A process that has loaded torch is traced from the outside in a few milliseconds, where to start it
under strace takes seconds; and what a library written in Rust does is seen, too.
"""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 20.0  # until strace has attached itself
MARK = "getppid"  # a system call that nobody else makes: where it is seen, so is all that follows


class CannotTraceError(Exception):
    """There is no strace, or it may not be used here."""


@dataclass(frozen=True)
class Call:
    """A system call; number: how many of that name in the block so far. line: as strace has it."""

    name: str
    number: int
    line: str


@contextmanager
def traced(log: Path, calls: str, inject: str | None = None) -> Iterator[None]:
    """A block whose system calls of this thread are written to `log`.

    calls: their names, with commas. inject: what happens at one of them, as strace takes it:
    `write:error=ENOSPC:when=3`.

    Raises CannotTraceError.
    """
    line = ["strace", "-qq", "-y", "-s", "300", "-o", str(log), "-e", f"trace={calls},{MARK}"]
    line += ["-e", f"inject={inject}"] if inject else []
    log.write_text("")
    try:
        tracer = subprocess.Popen(
            [*line, "-p", str(threading.get_native_id())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise CannotTraceError("strace is not installed") from None
    attached = threading.Event()
    # another thread looks into the log: what this one reads would count
    look = threading.Thread(target=_wait_for_mark, args=(log, tracer, attached), daemon=True)
    look.start()
    while look.is_alive():
        os.getppid()
        time.sleep(0.001)
    if not attached.is_set():
        tracer.kill()
        reason = tracer.communicate()[1].decode(errors="replace").strip()
        raise CannotTraceError(f"strace may not be used here: {reason[:100]}")
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def _wait_for_mark(log: Path, tracer: "subprocess.Popen[bytes]", attached: threading.Event) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and tracer.poll() is None:
        if MARK in log.read_text(errors="replace"):
            attached.set()
            return
        time.sleep(0.001)


def calls_of(log: Path) -> list[Call]:
    """The system calls in a log, in their order."""
    seen: dict[str, int] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\w+)\(", line)
        if match and match[1] != MARK:
            seen[match[1]] = seen.get(match[1], 0) + 1
            found.append(Call(match[1], seen[match[1]], line))
    return found


def injected(log: Path) -> str | None:
    """The call at which the fault happened; None where it was not reached."""
    lines = log.read_text(errors="replace").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if "(INJECTED)" in line:
            return line
        if line.startswith("--- SIG"):
            return before
    return None
