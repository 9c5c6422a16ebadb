"""What a disk, a copy or a person does to files: flipped bits, cuts, zeros; and how to see it."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

from nanogpt_dist.errors import MAX_LINE, BadDataError, NanogptError
from tests.faults.commands import Started


def flip(path: Path, choose: random.Random, stop: int | None = None) -> int:
    """Turn one bit of a file around; in which byte. stop: it is before that one."""
    data = bytearray(path.read_bytes())
    where = choose.randrange(min(len(data), stop or len(data)))
    data[where] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    return where


def cut(path: Path, choose: random.Random) -> int:
    """Cut a file off, sometimes by a single byte or to nothing; its size now."""
    size = path.stat().st_size
    left = choose.choice([0, size - 1, choose.randrange(size), choose.randrange(size)])
    os.truncate(path, left)
    return left


def zero_tail(path: Path, choose: random.Random) -> int:
    """Zeros for the end of a file, as after a power cut; the first byte that is another now."""
    data = path.read_bytes()
    last = len(data.rstrip(b"\0"))  # behind it there are zeros already
    start = choose.randrange(last)
    path.write_bytes(data[:start] + bytes(len(data) - start))
    return start


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of each file below a folder, what a link says, and its folders."""
    return {
        str(path.relative_to(folder)): (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "a folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def line_of(done: Started, *words: str) -> str:
    """The one error line of a command that has failed as it should, which has these words."""
    stderr = done.stderr
    assert "Traceback" not in stderr, stderr[-1000:]
    lines = [line for line in stderr.splitlines() if line.startswith("nanogpt: error")]
    assert len(lines) == 1, f"{len(lines)} lines of error: {stderr[-1000:]}"
    assert len(lines[0]) <= MAX_LINE, lines[0]
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    return lines[0]


def refused(use: Callable[[], object], *words: str, kind: type[NanogptError] = BadDataError) -> str:
    """What the error of this kind says that `use` has to raise: one line, with these words.

    It is short, but where it may be a list of wrong settings, which is cut as it is printed.
    """
    try:
        use()
    except kind as error:
        said = str(error)
    else:
        raise AssertionError("nothing was noticed")
    assert "\n" not in said, said[:1000]
    assert len(said) <= MAX_LINE or kind is NanogptError, said[:1000]
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"
    return said
