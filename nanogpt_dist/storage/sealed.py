"""A folder that appears under its name complete or not at all, with a sha256 for every byte.

    begin      make .tmp-NAME-…         a crash here leaves what steps.sweep() removes
    (fill)     write the files
    seal       fsync and hash the files, write and fsync manifest.json, fsync the folder
               rename to NAME           the one moment at which NAME appears
               fsync the parent         NAME outlives a power cut: the save is done

manifest.py writes and reads the list of the files and their hashes.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from nanogpt_dist.errors import BadDataError, CannotCreateError, MissingInputError, StorageError
from nanogpt_dist.storage.durable import (
    fsync_folder,
    make_folder,
    remove,
    shown,
    staging_name,
    storage_errors,
    write_new,
)
from nanogpt_dist.storage.manifest import (
    MANIFEST,
    describe_file,
    encode_manifest,
    file_problem,
    is_debris,
    parse_manifest,
)

# after which a machine sees what another has made in a shared folder: NFS's acdirmax, its default
LAG_S, POLL_S = 60.0, 0.1


def begin(parent: Path, name: str) -> Path:
    """Creates an empty staging folder in `parent` for the files of the future folder `name`.

    End it with seal() or discard().

    Raises: StorageError; CannotCreateError for `..`.
    """
    if name in ("", ".", ".."):
        raise CannotCreateError(
            f"{shown(parent / name)} is no name for a new folder; give another one"
        )
    staging = parent / staging_name(name)
    with storage_errors(parent / name):
        make_folder(parent)
        staging.mkdir()
        try:
            fsync_folder(parent)
        except BaseException:
            discard(staging)
            raise
    return staging


def seal(
    staging: Path,
    name: str,
    about: dict[str, object],
    known: dict[str, str] | None = None,
) -> Path:
    """Makes a staging folder durable and renames it to `name`, whose path it returns.

    about: JSON values for the manifest's top level. known: {file name: sha256} of files hashed by
    whoever wrote them; the others are hashed here. A good folder of that name stays and the new one
    is dropped; a bad one is set aside first.

    Raises: StorageError; then the name is as it was, and the staging folder waits for discard().
    """
    known, target = known or {}, staging.parent / name
    with storage_errors(target):
        paths = sorted(staging.iterdir())
        if missing := sorted(known.keys() - {path.name for path in paths}):
            raise StorageError(
                f"{shown(target)}: {missing[0]} was written but is not there; is the folder shared "
                "by all?"
            )
        needed = sum(path.stat().st_size for path in paths)
    with storage_errors(target, needed):
        files = [describe_file(path, known.get(path.name)) for path in paths]
        write_new(staging / MANIFEST, encode_manifest(about, files))
        fsync_folder(staging)
        return _publish(staging, target)


def discard(staging: Path) -> None:
    """Removes a staging folder as far as possible, quietly: something else has failed already."""
    with suppress(OSError):
        remove(staging)


def commit(
    parent: Path,
    name: str,
    fill: Callable[[Path], None],
    about: dict[str, object],
    known: dict[str, str] | None = None,
    needed: int | None = None,
) -> Path:
    """begin(), fill(staging) and seal() in one; on failure `name` is as before.

    known: as seal() takes it. needed: bytes that `fill` writes, for the message on a full disk.

    Raises: StorageError, and what `fill` raises.
    """
    with storage_errors(
        parent / name, needed
    ):  # outside, so that the free bytes are those after discard()
        staging = begin(parent, name)
        try:
            fill(staging)
            return seal(staging, name, about, known)
        except BaseException:
            discard(staging)
            raise


def wait_for(folder: Path, seconds: float = LAG_S) -> None:
    """Wait until this machine sees all files of a folder that another one has sealed.

    Gives up quietly after `seconds`: whoever reads a file says that it is missing.
    """
    deadline = time.monotonic() + seconds
    while not _is_seen(folder) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_seen(folder: Path) -> bool:
    try:
        os.listdir(folder.parent)  # a listing is asked for anew where a name may be remembered
        files = parse_manifest(folder)["files"]
    except (OSError, ValueError, BadDataError):
        return False
    return all((folder / file["name"]).exists() for file in files)


def set_aside(folder: Path) -> Path:
    """Renames a bad folder NAME to .bad-NAME-1 (or -2, …) and returns it. Raises: OSError."""
    places = (folder.with_name(f".bad-{folder.name}-{n}") for n in count(1))
    place = next(place for place in places if not os.path.lexists(place))
    os.rename(folder, place)
    fsync_folder(folder.parent)
    return place


def verify(folder: Path, hashes: bool = True) -> list[tuple[str, str]]:
    """What is wrong with a sealed folder as (file name, reason); empty if nothing is.

    hashes=False looks at the manifest, the names and the sizes only. Names that fit DEBRIS do not
    count.

    Raises: NewerFormatError; StorageError where a file cannot be read: that says nothing of its
    bytes.
    """
    try:
        files = {entry["name"]: entry for entry in parse_manifest(folder)["files"]}
    except ValueError as error:
        return [(MANIFEST, str(error))]
    with storage_errors(folder):
        present = {name for name in os.listdir(folder) if not is_debris(name)}
    checked = ((name, file_problem(folder / name, entry, hashes)) for name, entry in files.items())
    bad = [(name, reason) for name, reason in checked if reason]
    return bad + [
        (name, "is not in the manifest") for name in sorted(present - files.keys() - {MANIFEST})
    ]


def require_good(folder: Path) -> None:
    """Returns if every byte of a folder that the user names is as sealed.

    Raises: MissingInputError without such a folder, BadDataError with its first bad file.
    """
    if not folder.is_dir():
        raise MissingInputError(
            f"{shown(folder)} is not a folder; name a run folder or one of its checkpoints/step-…"
        )
    if bad := verify(folder):
        (name, reason), more = bad[0], f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BadDataError(
            f"{shown(folder)}: {name[:30]} {reason}{more}; name another step or restore a backup"
        )


def _publish(staging: Path, target: Path) -> Path:
    """Renames `staging` to `target` and makes the name durable.

    If the fsync fails the rename is undone: what may be lost must not look saved.
    """
    if os.path.lexists(target):
        if not verify(target):
            remove(staging)
            fsync_folder(target.parent)  # whoever made it may have died before this
            return target
        set_aside(target)
    os.rename(staging, target)
    try:
        fsync_folder(target.parent)
    except OSError:
        with suppress(OSError):
            os.rename(target, staging)
        raise
    return target
