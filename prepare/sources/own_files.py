"""Files that nanogpt wrote itself, which are no text: data folders, runs, tokenizers."""

import os
import stat
from functools import cache
from pathlib import Path

from nanogpt_dist.data import manifest
from nanogpt_dist.storage.durable import storage_errors
from nanogpt_dist.tokenizer import tokenizer

RUN_FILES = {
    *("run.json", "status.json", "metrics.jsonl", "events.jsonl", "samples.jsonl"),
    *("attempts.jsonl", "verdict.json"),
}
EVALUATED = ".eval.json"  # beside a checkpoint, behind its name
HEAD_BYTES = 64  # of a JSON file, within which ours say what they are
_MARKS = tuple(f'"format": "{name}"'.encode() for name in (tokenizer.FORMAT, manifest.FORMAT))


class OwnFiles:
    """Tells our own files from the user's.

    out: the folder that is being filled, of which nothing is read.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out.resolve() if out else None
        self.streams = {(info.st_dev, info.st_ino) for info in map(_stream, (1, 2)) if info}
        self._is_checkpoint, self._is_run, self._is_out = (
            cache(_is_checkpoint),
            cache(_is_run),
            cache(self._in_out),
        )

    def is_output(self, path: Path) -> bool:
        """Whether this command writes the file: it lies in `out`, or standard output goes to it."""
        if self._is_out(path.parent) or (path.is_symlink() and self._in_out(path)):
            return True
        with storage_errors(path):
            info = os.stat(path, follow_symlinks=False)
        return (info.st_dev, info.st_ino) in self.streams

    def is_ours(self, path: Path) -> bool:
        """Whether nanogpt wrote the file, by its folder or by its first bytes."""
        if path.name in RUN_FILES and self._is_run(path.parent):
            return True
        if path.name.endswith(EVALUATED) and path.with_name(path.name[: -len(EVALUATED)]).is_dir():
            return True
        if any(self._is_checkpoint(folder) for folder in path.parents):
            return True
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with storage_errors(path), path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return any(mark in head for mark in _MARKS)

    def _in_out(self, path: Path) -> bool:
        return self.out is not None and Path(os.path.realpath(path)).is_relative_to(self.out)


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file() and any(
        (folder / name).is_file() for name in ("run.json", "status.json")
    )


def _is_checkpoint(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.toml", "state.json", "manifest.json"))


def _stream(fd: int) -> os.stat_result | None:
    """What a standard stream goes to, if that is a file."""
    try:
        info = os.fstat(fd)
    except OSError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None
