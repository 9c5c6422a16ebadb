"""Files of ids at a second place: by hard links, or by copies where that cannot be."""

import filecmp
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nanogpt_dist.data.foreign import ForeignShard
from nanogpt_dist.errors import CannotCreateError
from nanogpt_dist.storage.durable import copy_atomic, shown, storage_errors


def link_or_copy(file: ForeignShard, path: Path, note: Callable[[str], None]) -> ForeignShard:
    """The file as `path`: a hard link, or a copy where no link is possible.

    Raises CannotCreateError, StorageError.
    """
    if path.is_symlink() or (
        path.exists() and not path.samefile(file.path) and not _is_same(file.path, path)
    ):
        raise CannotCreateError(
            f"{shown(path)} is there already, and another one; move it away, or give another --out"
        )
    if not path.exists():
        try:
            os.link(file.path, path)
        except OSError as error:
            note(
                f"{shown(path)} becomes a copy, {file.bytes:,} bytes, as no hard link can be made: "
                f"{error.strerror}"
            )
            copy_atomic(file.path, path)
    return replace(file, path=path)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes: a copy of ours, say, of an import that was killed."""
    with storage_errors(other):
        return filecmp.cmp(one, other, shallow=False)
