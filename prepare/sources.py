"""Where the text of a corpus lies: files named by the user, the running Python's library, or one public address."""

import hashlib
import os
import platform
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nanogpt_dist.errors import HubUnavailableError, MissingInputError, UsageError
from nanogpt_dist.shards.manifest import SourceRecord
from nanogpt_dist.storage.durable import sha256_file, shown
from prepare.corpora import Corpus

FIELDED = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")  # rows with fields, one of which is the text
READABLE = (".txt", ".md", *FIELDED)
DOWNLOAD_TIMEOUT_S = 30
# Of the standard library: its tests, what others installed there, and a file of build settings with local paths.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_BUILD_SETTINGS = "_sysconfigdata"


@dataclass(frozen=True)
class Source:
    """A file to read. name: relative to the source that was given; path None: still to be downloaded."""

    name: str
    path: Path | None


@dataclass(frozen=True)
class Sources:
    """The files of a corpus in the order they are read; ignored: files in the folders given that cannot be read."""

    files: tuple[Source, ...]
    revision: str | None = None
    ignored: int = 0


def find_sources(corpus: Corpus, given: Sequence[Path]) -> Sources:
    """The files to read for `corpus`, where `given` stands in for the download or is the corpus. Nothing is written.

    Raises UsageError, MissingInputError.
    """
    if corpus.origin == "stdlib":
        if given:
            raise UsageError(f"{corpus.name} takes no --source; for files type: nanogpt prepare text --source PATH")
        return _standard_library()
    if corpus.origin == "download":
        if len(given) > 1:
            raise UsageError(f"{corpus.name} is one file: give --source once, or none to download it")
        if given:
            _require_file(given[0])
        # The same bytes are the same data set, whatever the user's copy is called.
        return Sources((Source("input.txt", given[0] if given else None),))
    if not given:
        raise UsageError(f"{corpus.name} needs --source PATH, a file or a folder; it may be given several times")
    return _local_files(given)


def records(corpus: Corpus, sources: Sources) -> list[SourceRecord]:
    """Name, size and sha256 of every file; of one still to be downloaded those that the catalogue promises."""
    return [
        SourceRecord(name=_printable(file.name), bytes=file.path.stat().st_size, sha256=sha256_file(file.path))
        if file.path
        else SourceRecord(name=file.name, bytes=corpus.bytes, sha256=corpus.sha256)
        for file in sources.files
    ]


@contextmanager
def on_disk(corpus: Corpus, sources: Sources) -> Iterator[Sources]:
    """`sources` with every file there, for as long as the block runs. Raises HubUnavailableError."""
    if all(file.path for file in sources.files):
        yield sources
        return
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as folder:
        path = Path(folder) / "input.txt"
        path.write_bytes(_download(corpus))
        yield replace(sources, files=tuple(replace(file, path=path) for file in sources.files))


def _download(corpus: Corpus) -> bytes:
    from http.client import HTTPException
    from urllib.request import urlopen

    assert corpus.address is not None
    by_hand = f"download {corpus.address} by hand and give --source FILE"
    try:
        with urlopen(corpus.address, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            data = answer.read(corpus.bytes + 1)
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = str(getattr(error, "reason", error))[:40]
        raise HubUnavailableError(f"no download ({reason}): {by_hand}") from error
    if hashlib.sha256(data).hexdigest() != corpus.sha256:
        raise HubUnavailableError(f"the download is not the known text: {by_hand}")
    return data


def _standard_library() -> Sources:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in _walk(root, _NOT_LIBRARY)
        if path.suffix == ".py" and not path.is_symlink() and not path.name.startswith(_BUILD_SETTINGS)
    ]
    if not paths:
        raise MissingInputError("this Python came without library sources; try: nanogpt prepare text --source PATH")
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    return Sources(tuple(Source(name, path) for name, path in files), revision=f"Python {platform.python_version()}")


def _local_files(given: Sequence[Path]) -> Sources:
    files: list[Source] = []
    ignored = 0
    for path in given:
        if path.is_dir():
            inside = sorted((found.relative_to(path).as_posix(), found) for found in _walk(path))
            readable = [Source(name, found) for name, found in inside if name.endswith(READABLE)]
            files += readable
            ignored += len(inside) - len(readable)
        else:
            _require_file(path)
            if not path.name.endswith(READABLE):
                raise UsageError(f"cannot read {shown(path)}: a source is one of {' '.join(READABLE)} or a folder")
            files.append(Source(path.name, path))
    if not files:
        raise MissingInputError(f"nothing to read in {shown(given[0])}: no file ends in {' '.join(READABLE)}")
    return Sources(tuple(files), ignored=ignored)


def _walk(root: Path, without: Iterable[str] = ()) -> Iterator[Path]:
    """All files under `root`, hidden ones left out, in no order; links to folders are not followed."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in without and not name.startswith(".")]
        yield from (Path(folder, file) for file in files if not file.startswith("."))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; give --source another path")


def _printable(name: str) -> str:
    """A file name as text, also where its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")
