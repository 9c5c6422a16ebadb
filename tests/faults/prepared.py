"""What many tries begin with, made once by whoever needs it first: a data folder, a run."""

import fcntl
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TINY, build, write_jsonl
from tests.faults import commands

PLACE = Path()  # of this campaign; set at its start

TRAIN = [
    *TINY,
    "--vocab-size",
    "257",
    "--no-tensorboard",
    "--dropout",
    "0.1",
    "--log-interval",
    "1",
]


def once(make: Callable[[Path], None]) -> Callable[[], Path]:
    """make(folder) fills a new folder; the result is called for that folder, in any process."""

    @functools.wraps(make)
    def made() -> Path:
        PLACE.mkdir(exist_ok=True)
        folder = PLACE / make.__name__
        with open(PLACE / f"{make.__name__}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                begun = PLACE / f"{make.__name__}.begun"
                shutil.rmtree(begun, ignore_errors=True)
                begun.mkdir()
                make(begun)
                begun.rename(folder)
        return folder

    return made


@once
def data(folder: Path) -> None:
    """A module of Python's, byte by byte."""
    source = folder.with_name("source.txt")
    shutil.copy(Path(os.__file__).parent / "ast.py", source)
    build("text", folder / "data", sources=[source], tokenizer="byte", workers=1)


@once
def trained(folder: Path) -> None:
    """FOLDER/data and FOLDER/out, a run of 24 steps of one process, saved every 4, three kept."""
    shutil.copytree(data() / "data", folder / "data")
    commands.run("train", "--dataset", "data", "--out-dir", "out", *STEPS_24, folder=folder)


STEPS_24 = [
    *TRAIN,
    *("--max-iters", "24", "--eval-interval", "12", "--save-interval", "4"),
    *("--keep-checkpoints", "3"),
]


@once
def trained_by_two(folder: Path) -> None:
    """As trained(), by two ranks."""
    shutil.copytree(data() / "data", folder / "data")
    line = ["train", "--dataset", "data", "--out-dir", "out", *STEPS_24]
    commands.run(*line, folder=folder, ranks=2)


@once
def trained_without_dropout(folder: Path) -> None:
    """As trained(), without dropout, whose masks each rank draws for itself."""
    shutil.copytree(data() / "data", folder / "data")
    line = ["train", "--dataset", "data", "--out-dir", "out", *STEPS_24, "--dropout", "0"]
    commands.run(*line, folder=folder)


@once
def texts(folder: Path) -> None:
    """FOLDER/texts.jsonl, 6 MB of Python's own modules, and FOLDER/out, prepared of them."""
    sources = sorted(Path(os.__file__).parent.rglob("*.py"))
    documents = [path.read_text("utf-8", "replace") for path in sources[:400]]
    write_jsonl(folder / "texts.jsonl", documents)
    build("text", folder / "out", [folder / "texts.jsonl"], tokenizer="byte", workers=1)


def copied(made: Path, folder: Path) -> Path:
    """A try's own copy of what made() filled; `folder`."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder
