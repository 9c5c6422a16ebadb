"""What a run does at a save: commit step 2, note it, delete step 1. The fault sweeps kill, fail and
unplug this.

As a script: `python session.py CHECKPOINTS`; prints "committed" once the checkpoint must survive
anything.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.errors import NanogptError

OLD, NEW = storage.step_name(1), storage.step_name(2)


def content(name: str, file: str) -> bytes:
    """What `file` of the checkpoint `name` must hold."""
    return f"{name}/{file} ".encode() * 40


def fill(staging: Path) -> None:
    """Writes two files in several pieces, without fsync: that is for seal()."""
    name = storage.step_name(int(staging.name.split("-")[2]))  # .tmp-step-00000002-…
    for file in ("model.bin", "state.json"):
        fd = os.open(staging / file, os.O_WRONLY | os.O_CREAT, 0o666)
        data = content(name, file)
        os.write(fd, data[:500])
        os.write(fd, data[500:])
        os.close(fd)


def session(checkpoints: Path, acknowledge: Callable[[str], None]) -> None:
    """One save; `acknowledge` is called with what must last from then on."""
    storage.commit(checkpoints, NEW, fill, {"step": 2})
    acknowledge("committed")
    storage.write_latest(checkpoints, NEW)
    acknowledge("latest")
    storage.prune(checkpoints, keep=1, also=set())


def before(checkpoints: Path) -> None:
    """The folder as it is before the session: step 1, and things that are the user's."""
    storage.commit(checkpoints, OLD, fill, {"step": 1})
    storage.write_latest(checkpoints, OLD)
    (checkpoints / "notes").mkdir()
    (checkpoints / "notes" / "why.txt").write_text("mine")


def check(checkpoints: Path, acknowledged: list[str]) -> None:
    """Old or new, never a mixture: every visible checkpoint is whole, the newest is the
    acknowledged one or newer.
    """
    steps = storage.list_steps(checkpoints)
    for folder in steps:
        assert storage.verify(folder) == [], folder
        for file in ("model.bin", "state.json"):
            assert (folder / file).read_bytes() == content(folder.name, file), folder
    assert steps, "all checkpoints are lost"
    assert not acknowledged or steps[0].name == NEW, "an acknowledged checkpoint is lost"
    latest = storage.read_latest(checkpoints)
    assert latest in ((NEW,) if "latest" in acknowledged else (OLD, NEW)), f"latest says {latest}"
    assert (checkpoints / "notes" / "why.txt").read_text() == "mine"


if __name__ == "__main__":
    try:
        session(Path(sys.argv[1]), lambda what: print(what, flush=True))
    except NanogptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
