"""manifest.json of a sealed folder: its files, their sizes and their sha256.

The content is: the format, what the caller says of the folder, the files, and last the sha256 of
all text before that line. Later formats keep that last line, so that "newer than this program" can
be told from "damaged".
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import open_plain, shown, storage_errors
from nanogpt_dist.storage.shallow_json import parse_json

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
    """The folder is whole, but a later version wrote it: neither use it nor set it aside."""


def is_debris(name: str) -> bool:
    """Whether a file of that name is left by other programs, and no damage."""
    return DEBRIS.fullmatch(name) is not None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, checked against its own sha256 and its schema.

    The files are not looked at.

    Raises: BadDataError; NewerFormatError, a kind of it, when a later version wrote the folder.
    """
    try:
        return parse_manifest(folder)
    except ValueError as error:
        raise BadDataError(
            f"{shown(folder)}: {MANIFEST} {error}; use another checkpoint or restore a backup"
        ) from error


def describe_file(path: Path, sha256: str | None) -> dict[str, object]:
    """Makes a file durable and returns its entry for the manifest."""
    assert NAME.fullmatch(path.name), path.name
    assert path.name != MANIFEST, "seal() writes the manifest"
    with open_plain(path) as file:
        os.fsync(file.fileno())
        sha256 = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}


def encode_manifest(about: dict[str, object], files: list[dict[str, object]]) -> bytes:
    assert not about.keys() & {"format", "files", "sha256"}, about.keys()
    body = json.dumps({"format": FORMAT, **about, "files": files}, indent=1, allow_nan=False)
    head = body.removesuffix("\n}").encode()
    return head + _last_line(head)


def _last_line(head: bytes) -> bytes:
    """The end of a manifest that begins with `head`: its length is the same for all."""
    return b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()


def parse_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked.

    Raises: ValueError that completes the sentence "manifest.json …"; NewerFormatError;
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
        manifest = parse_json(raw, finite=True)
    except ValueError as error:
        raise ValueError("is not JSON as this program writes it") from error
    _check(manifest, folder)
    return manifest


def _check(manifest: Any, folder: Path) -> None:
    """Checks the schema, against a manifest made to harm: the names in it are opened."""
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("names no format version")
    if version > FORMAT:
        known = f"newer than {FORMAT}, the last known here"
        raise NewerFormatError(
            f"{shown(folder)} has format {version}, {known}; in your clone type: git pull && pip "
            "install ."
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


def file_problem(path: Path, entry: dict[str, Any], hashes: bool) -> str | None:
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
    """What is wrong with a file that cannot be opened.

    Raises: StorageError where the disk, not the file, is at fault.
    """
    with storage_errors(path):
        if error.errno not in DAMAGE:
            raise error
    return DAMAGE[error.errno]
