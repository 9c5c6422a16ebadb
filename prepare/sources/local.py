"""The files of a corpus: the user's, Python's library, or one public address."""

import glob
import hashlib
import os
import platform
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nanogpt_dist.data.manifest import SourceRecord
from nanogpt_dist.errors import (
    BadDataError,
    HubUnavailableError,
    MissingInputError,
    UsageError,
    one_line,
)
from nanogpt_dist.storage.durable import printable, sha256_file, shown, storage_errors
from prepare.corpora import Corpus
from prepare.readers.formats import ENDINGS, is_readable
from prepare.readers.unsupported import beside_records, how_to_read, is_about
from prepare.sources.own_files import OwnFiles

DOWNLOAD_TIMEOUT_S = 30
DOWNLOAD_WAITS_S = (0.5, 2.0)
DOWNLOADED = "input.txt"  # what a downloaded file is called in the manifest
# how standard input is given, and what it is called then
STDIN = {"-": "stdin.txt", "-.jsonl": "stdin.jsonl"}
# Of the standard library: its tests, what others installed there, and a file of build settings with
# local paths.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_BUILD_SETTINGS = "_sysconfigdata"

LFS_POINTER, LFS_BYTES = b"version https://git-lfs.github.com/spec/", 1024  # no pointer is longer

Stamp = tuple[int, int, int]  # what changes with a file: size, time of the last change, inode
Hashes = Mapping[str, tuple[Stamp, str]]  # by path: the sha256 of a file as it was at that stamp


@dataclass(frozen=True)
class Source:
    """A file to read.

    name: relative to the source that was given; path None: still to be downloaded.
    """

    name: str
    path: Path | None
    stamp: Stamp | None = None  # before anything was read


@dataclass(frozen=True)
class Sources:
    """The files of a corpus in the order they are read.

    ignored: what stands beside them in the folders given; notes: what else is to be told about
    these.
    """

    files: tuple[Source, ...]
    revision: str | None = None
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_sources(corpus: Corpus, given: Sequence[Path], out: Path | None = None) -> Sources:
    """The files to read for `corpus`; nothing is written.

    `given` stands in for the download, or is the corpus.

    out: the folder to be filled, of which nothing is read; nor is what nanogpt has written in the
    folders given. Raises UsageError, MissingInputError.
    """
    if corpus.origin == "stdlib":
        if given:
            raise UsageError(
                f"{corpus.name} takes no --source; for files type: nanogpt prepare text --source "
                "PATH"
            )
        return _standard_library()
    if corpus.origin == "download":
        if len(given) > 1:
            raise UsageError(
                f"{corpus.name} is one file: give --source once, or none to download it"
            )
        if given:
            return Sources((_known_file(corpus, given[0]),))
        return Sources((Source(DOWNLOADED, None),))
    if not given:
        raise UsageError(
            f"{corpus.name} needs --source PATH, a file or a folder; it may be given several times"
        )
    return _local_files(given, OwnFiles(out))


def records(corpus: Corpus, sources: Sources, known: Hashes | None = None) -> list[SourceRecord]:
    """Name, size and sha256 of every file.

    Of one still to be downloaded those that the catalogue promises.

    known: hashes that need not be computed again where the file is still the same.
    """
    # hashlib lets other threads run
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda file: _record(corpus, file, known or {}), sources.files))


def _record(corpus: Corpus, file: Source, known: Hashes) -> SourceRecord:
    if file.path is None:
        return SourceRecord(name=file.name, bytes=corpus.bytes, sha256=corpus.sha256)
    assert file.stamp is not None
    before = known.get(printable(file.path))
    digest = before[1] if before and tuple(before[0]) == file.stamp else sha256_file(file.path)
    return SourceRecord(name=printable(file.name), bytes=file.stamp[0], sha256=digest)


@contextmanager
def on_disk(corpus: Corpus, sources: Sources) -> Iterator[Sources]:
    """`sources` with every file on disk, for the block. Raises HubUnavailableError."""
    if all(file.path for file in sources.files):
        yield sources
        return
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as folder:
        path = Path(folder) / DOWNLOADED
        path.write_bytes(_download(corpus))
        yield replace(sources, files=tuple(_source(file.name, path) for file in sources.files))


@contextmanager
def with_standard_input(given: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """`given` with a file in the place of `-` (text) or `-.jsonl` (lines).

    It holds standard input, read to its end.
    """
    if not any(str(path) in STDIN for path in given):
        yield given
        return
    if sum(str(path) in STDIN for path in given) > 1:
        raise UsageError("standard input can be read once; give --source - once")
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "--source - reads standard input, which is a terminal here; type: … | nanogpt prepare "
            "text …"
        )
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as folder:
        paths = []
        for path in given:
            if name := STDIN.get(str(path)):
                path = Path(folder) / name
                with storage_errors(path), path.open("wb") as file:
                    while data := sys.stdin.buffer.read(1 << 20):
                        file.write(data)
            paths.append(path)
        yield paths


def refuse_changed(sources: Sources) -> None:
    """Raise BadDataError where a file has changed since it was hashed."""
    for file in sources.files:
        assert file.path is not None
        if _stamp(file.path) != file.stamp:
            raise BadDataError(
                f"{shown(file.path)} changed while it was read; run the same command again"
            )


def _download(corpus: Corpus) -> bytes:
    """The file at the corpus's address, asked for a few times.

    It is small, and a copy may be given instead.
    """
    by_hand = f"download {corpus.address} by hand and give --source FILE"
    for wait_s in (*DOWNLOAD_WAITS_S, None):
        try:
            data = _fetched(corpus)
        except HubUnavailableError as error:
            reason = str(error)
        else:
            if hashlib.sha256(data).hexdigest() == corpus.sha256:
                return data
            reason = "it is not the known text"
        if wait_s is not None:
            time.sleep(wait_s * random.uniform(0.5, 1.5))
    raise HubUnavailableError(f"no download ({reason}): {by_hand}")


def _fetched(corpus: Corpus) -> bytes:
    from http.client import HTTPException
    from urllib.request import urlopen

    assert corpus.address is not None
    try:
        with urlopen(corpus.address, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            return bytes(answer.read(corpus.bytes + 1))
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        raise HubUnavailableError(str(getattr(error, "reason", error))[:40]) from error


def _standard_library() -> Sources:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in _walk(root, _NOT_LIBRARY)
        if path.suffix == ".py"
        and not path.is_symlink()
        and not path.name.startswith(_BUILD_SETTINGS)
    ]
    if not paths:
        raise MissingInputError(
            "this Python came without library sources; try: nanogpt prepare text --source PATH"
        )
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    return Sources(
        tuple(_source(name, path) for name, path in files),
        revision=f"Python {platform.python_version()}",
    )


def _local_files(given: Sequence[Path], own: OwnFiles) -> Sources:
    files: list[Source] = []
    ignored: list[str] = []
    notes: list[str] = []
    ours: list[str] = []
    for path in _expanded(given, own, ours):
        if path.is_dir():
            walked = [found for found in _walk(path) if not own.is_output(found)]
            inside = sorted((found.relative_to(path).as_posix(), found) for found in walked)
            readable = {
                name: found for name, found in inside if is_readable(name) and not found.is_dir()
            }
            written = {name for name, found in readable.items() if own.is_ours(found)}
            ours += sorted(written)
            readable = {name: found for name, found in readable.items() if name not in written}
            beside = beside_records(list(readable))
            files += [
                _source(name, found) for name, found in readable.items() if name not in beside
            ]
            ignored += [
                name for name, _ in inside if not is_readable(name) or Path(path, name).is_dir()
            ]
            notes += _notes(path, readable, beside)
        else:
            files.append(_source(path.name, path))
            if not is_readable(path.name):
                raise UsageError(f"cannot read {shown(path)}: {how_to_read(path.name)}")
    if not files:
        raise MissingInputError(
            f"nothing to read in {shown(given[0])}{_why_nothing(given[0], own, ignored, ours)}"
        )
    if ours:
        notes.append(
            f"not read, as nanogpt wrote it ({len(ours)}): {one_line(', '.join(ours), 80)}"
        )
    _refuse_twice(files)
    return Sources(tuple(files), ignored=tuple(ignored), notes=tuple(notes))


def _why_nothing(given: Path, own: OwnFiles, ignored: Sequence[str], ours: Sequence[str]) -> str:
    if given.is_dir() and not ignored and any(own.is_output(path) for path in _walk(given)):
        return ": all that is there is --out's own; give --source what holds text, or another --out"
    if ours:
        return f": {ours[0][-24:]} and the like are nanogpt's own; give --source what holds text"
    if ignored:
        return f"; {ignored[0][-24:]}: {how_to_read(ignored[0])}"
    return f": no file ends in {ENDINGS}"


def _notes(folder: Path, readable: Mapping[str, Path], beside: set[str]) -> Iterator[str]:
    """Notes on a folder: files that are not read though they could be, or the other way.

    The latter may be about the others, as a README is.
    """
    if beside:
        names = one_line(", ".join(sorted(beside)), 80)
        yield (
            f"not read, as about the data ({len(beside)}): {names}; name those as --source that "
            "are text"
        )
    about = [name for name in readable if is_about(name) and name not in beside]
    if about and len(readable) > 1:
        names = one_line(", ".join(about), 80)
        yield (
            f"read as documents like the others ({len(about)}): {names}; without them: --source "
            f"'{folder}/PATTERN'"
        )


def _expanded(given: Sequence[Path], own: OwnFiles, ours: list[str]) -> Iterator[Path]:
    """`given` with patterns (`logs/*.txt`, `**/*.md`) replaced by their matches, in order.

    Files of our own go to `ours`.
    """
    for path in given:
        if path.exists() or not glob.has_magic(str(path)):
            yield path
            continue
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise MissingInputError(f"nothing matches {shown(path)}; give another pattern")
        for match in map(Path, found):
            if match.is_file() and own.is_ours(match):
                ours.append(str(match))
            elif not match.is_file() or not own.is_output(match):
                yield match


def _refuse_twice(files: list[Source]) -> None:
    seen: set[Path] = set()
    for file in files:
        assert file.path is not None
        if (real := file.path.resolve()) in seen:
            raise UsageError(
                f"{shown(file.path)} is among the sources twice; give each file or folder once"
            )
        seen.add(real)


def _walk(root: Path, without: Iterable[str] = ()) -> Iterator[Path]:
    """All files and links to folders under `root`, in no order.

    Hidden ones are left out; no link is followed.
    """
    for folder, names, files in os.walk(root, onerror=_raise):
        names[:] = [name for name in names if name not in without and not name.startswith(".")]
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        yield from (Path(folder, file) for file in files + links if not file.startswith("."))


def _raise(error: OSError) -> None:
    with storage_errors(Path(error.filename)):
        raise error


def _known_file(corpus: Corpus, path: Path) -> Source:
    """The user's copy of a file to download, whatever the copy is called.

    The same bytes are the same data set.
    """
    source = _source(DOWNLOADED, path)
    if sha256_file(path) != corpus.sha256:
        raise UsageError(
            f"{shown(path)} is not the known text of {corpus.name} (another sha256); type: nanogpt "
            f"prepare text --source FILE --tokenizer {corpus.tokenizer}"
        )
    return source


def _source(name: str, path: Path) -> Source:
    if not path.is_file():  # a pipe would block whoever reads it
        fault = "is not a file" if path.exists() else "does not exist"
        raise MissingInputError(f"{shown(path)} {fault}; give another path")
    source = Source(name, path, _stamp(path))
    if source.stamp and source.stamp[0] < LFS_BYTES and _begins_with(path, LFS_POINTER):
        raise BadDataError(
            f"{shown(path)} is a pointer of Git LFS, not the file itself; in its clone type: git "
            "lfs pull"
        )
    return source


def _begins_with(path: Path, head: bytes) -> bool:
    with storage_errors(path), path.open("rb") as file:
        return file.read(len(head)) == head


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
