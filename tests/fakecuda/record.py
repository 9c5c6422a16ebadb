"""What goes between host and device, noted in the order of time.

One line of JSON each, by the device's library or by torch.cuda's stand-in:

    up          a copy to the device: bytes, contiguous and pinned (the host's side)
    down        a copy to the host
    item        a number read: item(), float(), bool()
    sync        synchronize(), of the device, a stream or an event
    query       an event was asked
    pin         pinned memory was allocated: bytes, and device, the thread's current one
    collective  an operation between ranks: what, bytes
    race        a pinned buffer was written while it was copied
    stuck       a collective has lost a rank
    stream      a stream was entered: what, its name
    mark        what mark() was told

waits: the host waits for the device. rank, thread; where: the innermost frame of the program's.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
OURS = tuple(f"{CLONE / folder}{os.sep}" for folder in ("cli", "launch", "nanogpt_dist", "prepare"))


@dataclass(frozen=True)
class Happening:
    """One line of the record."""

    kind: str
    what: str = ""
    bytes: int = 0
    contiguous: bool = True
    pinned: bool = False
    waits: bool = False
    device: int = 0
    rank: int = 0
    thread: str = ""
    where: str = ""


happenings: list[Happening] = []  # of this process
listeners: list[Callable[[Happening], None]] = []


def note(
    kind: str,
    what: str = "",
    bytes: int = 0,
    contiguous: bool = True,
    pinned: bool = False,
    waits: bool = False,
    device: int = 0,
) -> None:
    """Add a line, with what is known of the caller."""
    happening = Happening(
        kind,
        what,
        bytes,
        contiguous,
        pinned,
        waits,
        device,
        int(os.environ.get("RANK", "0")),
        threading.current_thread().name,
        _where(),
    )
    happenings.append(happening)
    for listener in listeners:
        listener(happening)
    if path := os.environ.get("FAKECUDA_RECORD"):
        line = json.dumps(asdict(happening)) + "\n"
        # in one write: several ranks append to it
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, line.encode())
        os.close(descriptor)


def mark(what: str) -> None:
    """Say where the program is: `step 3`."""
    note("mark", what)


def _where() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            return f"{Path(name).relative_to(CLONE)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def read(path: Path, rank: int = 0) -> list[Happening]:
    """The lines of one rank in a file that FAKECUDA_RECORD named."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Happening(**json.loads(line)) for line in lines]
    return [happening for happening in found if happening.rank == rank]


def steps(happenings: list[Happening]) -> dict[int, list[Happening]]:
    """What happened from the beginning of each training step to that of the next, by its number.

    The last one ends with the training.
    """
    found: dict[int, list[Happening]] = {}
    here: list[Happening] | None = None
    for happening in happenings:
        if happening.kind == "mark":
            word, _, number = happening.what.partition(" ")
            here = found.setdefault(int(number), []) if word == "step" else None
        elif here is not None:
            here.append(happening)
    return found
