"""Sealed folders: a folder appears under its name complete or not at all, and its manifest vouches
for every byte.

    begin      make .tmp-NAME-…                      a crash here leaves rubbish that steps.sweep() removes
    (fill)     write the files
    seal       fsync and hash the files, write and fsync manifest.json, fsync the folder: now all of it is on the disk
               rename .tmp-NAME-… to NAME            the one moment at which NAME appears
               fsync the parent                      NAME outlives a power cut: the save may be called done

manifest.json = format, what the caller tells about the folder, the files, and last the sha256 of
all text before that line. Later formats must keep that last line, so that "newer than this program"
can be told from "damaged".
"""  # noqa: E501

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError, CannotCreateError, MissingInputError, StorageError
from nanogpt_dist.storage.durable import (
    fsync_folder,
    make_folder,
    open_plain,
    remove,
    shown,
    staging_name,
    storage_errors,
    write_new,
)

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST = 4 << 20  # bytes: 150 a file, so about 28,000 files
# no slash and no leading dot: never `..`, never a hidden file
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
# What file managers, editors, rsync and NFS leave in any folder: no file of ours, and nothing ever
# opens it. Torch's .metadata is none of them: it is a pickle.
DEBRIS = re.compile(
    r"\.(?!metadata$).*|.*~|~.*|#.*#|Thumbs\.db|ehthumbs\.db|desktop\.ini|Icon\r|@eaDir|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
DAMAGE = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.ELOOP: "is a symbolic link",
    errno.EINVAL: "is not a regular file",
}


class NewerFormatError(BadDataError):
    """The folder is whole, but a later version of this program wrote it: it must be neither used
    nor set aside.
    """


def is_debris(name: str) -> bool:
    """Whether a file of that name is no file of ours, and nobody's damage."""
    return DEBRIS.fullmatch(name) is not None


def begin(parent: Path, name: str) -> Path:
    """Makes and returns an empty folder in `parent`, where the files of the future folder `name`
    are written.

    End it with seal() or discard(). Raises: StorageError; CannotCreateError for `..`.
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
    """Makes the folder that begin() gave durable and renames it to `name`, whose path it returns.

    about: JSON values for the manifest's top level. known: {file name: sha256} of files hashed by
    whoever wrote them; the others are hashed here. A good folder of that name is left as it is and
    the new one dropped; a bad one is set aside first. Raises: StorageError; then the name is as it
    was, and the staging folder waits for discard().
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
        files = [_entry(path, known.get(path.name)) for path in paths]
        write_new(staging / MANIFEST, _encode(about, files))
        fsync_folder(staging)
        return _publish(staging, target)


def discard(staging: Path) -> None:
    """Removes a staging folder as far as possible, quietly: it runs when something else has failed
    already.
    """
    with suppress(OSError):
        remove(staging)


def commit(
    parent: Path,
    name: str,
    fill: Callable[[Path], None],
    about: dict[str, object],
    needed: int | None = None,
) -> Path:
    """begin(), fill(staging), seal() in one; whatever fails, `name` is as it was and nothing else
    is left.

    needed: bytes that `fill` writes, for the message on a full disk. Raises: StorageError, and what
    `fill` raises.
    """
    with storage_errors(
        parent / name, needed
    ):  # outside, so that the free bytes are those after discard()
        staging = begin(parent, name)
        try:
            fill(staging)
            return seal(staging, name, about)
        except BaseException:
            discard(staging)
            raise


def set_aside(folder: Path) -> Path:
    """Renames a bad folder NAME to .bad-NAME-1 (or -2, …), which it returns; nothing is deleted.
    Raises: OSError.
    """
    places = (folder.with_name(f".bad-{folder.name}-{n}") for n in count(1))
    place = next(place for place in places if not os.path.lexists(place))
    os.rename(folder, place)
    fsync_folder(folder.parent)
    return place


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, checked against its own sha256 and its schema; the files are
    not looked at.

    Raises: BadDataError; NewerFormatError, which is one, when a later version of this program wrote
    it.
    """
    try:
        return _manifest(folder)
    except ValueError as error:
        raise BadDataError(
            f"{shown(folder)}: {MANIFEST} {error}; use another checkpoint or restore a backup"
        ) from error


def verify(folder: Path, hashes: bool = True) -> list[tuple[str, str]]:
    """What is wrong with a sealed folder as (file name, reason), empty when every byte is as
    sealed.

    hashes=False looks at the manifest, the names and the sizes only. Names that fit DEBRIS do not
    count. Raises: NewerFormatError; StorageError where a file cannot be read: that says nothing of
    its bytes.
    """
    try:
        files = {entry["name"]: entry for entry in _manifest(folder)["files"]}
    except ValueError as error:
        return [(MANIFEST, str(error))]
    with storage_errors(folder):
        present = {name for name in os.listdir(folder) if not is_debris(name)}
    checked = ((name, _problem(folder / name, entry, hashes)) for name, entry in files.items())
    bad = [(name, reason) for name, reason in checked if reason]
    return bad + [
        (name, "is not in the manifest") for name in sorted(present - files.keys() - {MANIFEST})
    ]


def require_good(folder: Path) -> None:
    """Returns if every byte of a folder that the user named is as sealed; never looks for another
    one.

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
    """The rename and its fsync. If the fsync fails the rename is undone: what may be lost must not
    look saved.
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


def _entry(path: Path, sha256: str | None) -> dict[str, object]:
    """Makes a file durable and describes it for the manifest."""
    assert NAME.fullmatch(path.name), path.name
    assert path.name != MANIFEST, "seal() writes the manifest"
    with open_plain(path) as file:
        os.fsync(file.fileno())
        sha256 = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _encode(about: dict[str, object], files: list[dict[str, object]]) -> bytes:
    assert not about.keys() & {"format", "files", "sha256"}, about.keys()
    body = json.dumps({"format": FORMAT, **about, "files": files}, indent=1, allow_nan=False)
    head = body.removesuffix("\n}").encode()
    return head + _last_line(head)


def _last_line(head: bytes) -> bytes:
    """The end of a manifest that begins with `head`: its length is the same for all."""
    return b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()


def _manifest(folder: Path) -> dict[str, Any]:
    """Raises: ValueError that completes the sentence "manifest.json …"; NewerFormatError;
    StorageError.
    """
    try:
        with open_plain(folder / MANIFEST) as file:
            raw = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise ValueError(_damage(error, folder / MANIFEST)) from error
    if len(raw) > MAX_MANIFEST:
        raise ValueError(f"is larger than {MAX_MANIFEST:,} bytes")
    head = raw[: -len(_last_line(b""))]
    if raw != head + _last_line(head):
        raise ValueError("does not match its own sha256")
    try:
        manifest = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON as this program writes it") from error
    _check(manifest, folder)
    return manifest


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _check(manifest: Any, folder: Path) -> None:
    """The schema, against a manifest that was made to harm: the names in it will be opened."""
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("names no format version")
    if version > FORMAT:
        known = f"newer than {FORMAT}, the last known here"
        raise NewerFormatError(
            f"{shown(folder)} has format {version}, {known}; type: pip install -U nanogpt-dist"
        )
    files = manifest.get("files")
    if not isinstance(files, list) or not all(_is_entry(entry) for entry in files):
        raise ValueError("lists a file without a plain name, a size and a sha256")
    if len({entry["name"] for entry in files} | {MANIFEST}) != len(files) + 1:
        raise ValueError("lists a file twice, or itself")


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"name", "bytes", "sha256"}:
        return False
    name, size, sha256 = entry["name"], entry["bytes"], entry["sha256"]
    strings = isinstance(name, str) and isinstance(sha256, str)
    return (
        strings
        and bool(NAME.fullmatch(name) and SHA256.fullmatch(sha256))
        and type(size) is int
        and size >= 0
    )


def _problem(path: Path, entry: dict[str, Any], hashes: bool) -> str | None:
    """Why a listed file is not as sealed, or None."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                return f"has {size:,} bytes instead of {entry['bytes']:,}"
            if hashes and hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return "does not match its sha256"
    except OSError as error:
        return _damage(error, path)
    return None


def _damage(error: OSError, path: Path) -> str:
    """What is wrong with a file that cannot be opened. Raises: StorageError where that is not the
    file's fault.
    """
    with storage_errors(path):
        if error.errno not in DAMAGE:
            raise error
    return DAMAGE[error.errno]
