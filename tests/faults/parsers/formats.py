"""A Parser, and the cases made for it: the same for the same seed."""

import contextlib
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_dist.errors import Exit, explain
from tests.faults.parsers.mutations import Mutate, by_name

# what is too wrong to be sealed
UNSEALED = (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError)
KINDS = ("pipe", "zeros", "loop", "folder", "gone", "outside")  # in place of a file


@dataclass(frozen=True)
class Parser:
    """A reader of foreign files.

    make: writes good files into an empty folder. read: reads the folder's files as the program
    does; its errors are to be one line. changed: patterns of the files that are made wrong. seal:
    what a forger does afterwards: sums made right again, so that what stands behind them is
    reached. other_kinds: whether pipes, links and the like stand in the place of files, too.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    changed: tuple[str, ...] = ("**/*",)
    seal: Callable[[Path], None] | None = None
    mutate: Mutate | None = None
    other_kinds: bool = True


def try_all(looks: Iterable[Callable[[], object]]) -> None:
    """Several readings of a case. Raises, once all are made, what in one of them was a bug."""
    bugs = []
    for look in looks:
        try:
            look()
        except Exception as error:
            bugs += [error] if explain(error)[0] == Exit.BUG else []
    if bugs:
        raise bugs[0]


def good_files(parser: Parser, folder: Path) -> dict[str, bytes]:
    """What `parser` reads, by name; made in `folder`."""
    folder.mkdir(parents=True)
    parser.make(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_case(parser: Parser, good: dict[str, bytes], folder: Path, seed: int) -> str:
    """Write the case of that seed into `folder`; which of its files are wrong, in words."""
    choose = random.Random(f"{parser.name}:{seed}")
    for name, data in good.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    names = sorted(
        {
            path.relative_to(folder).as_posix()
            for pattern in parser.changed
            for path in folder.glob(pattern)
            if path.is_file()
        }
    )
    if seed == 0:
        return "nothing"
    wrong = choose.sample(names, min(len(names), choose.choice([1, 1, 1, 2])))
    for name in wrong:
        mutate = parser.mutate or by_name(name)
        others = [good[other] for other in names if other in good]
        (folder / name).write_bytes(mutate(good[name], others, choose))
    if parser.seal is not None and choose.random() < 0.8:
        with contextlib.suppress(*UNSEALED):
            parser.seal(folder)
    if parser.other_kinds and choose.random() < 0.03:
        kind = choose.choice(KINDS)
        _replace(folder / wrong[0], kind)
        wrong[0] += f": {kind}"
    return ", ".join(wrong)


def _replace(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        targets = {"zeros": "/dev/zero", "loop": path.name, "outside": "/etc/passwd"}
        path.symlink_to(targets[kind])
