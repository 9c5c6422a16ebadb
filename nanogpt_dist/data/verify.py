"""Every byte of a data folder against its manifest: bad files, and the MiB of a shard."""

import hashlib
import os
import zlib
from pathlib import Path

from nanogpt_dist.data.files import check_size, read_numbers
from nanogpt_dist.data.format import first_id
from nanogpt_dist.data.manifest import MANIFEST, FileRecord, Manifest, ShardRecord, TokenizerRecord
from nanogpt_dist.data.reader import DataFolder
from nanogpt_dist.data.scan import Progress, ReadProgress, in_threads, read_blocks
from nanogpt_dist.data.shard import check_header
from nanogpt_dist.errors import BadDataError, MissingInputError, NanogptError, clipped
from nanogpt_dist.storage import is_debris
from nanogpt_dist.storage.durable import shown, storage_errors

Bad = list[tuple[str, str]]
SHOWN = 6  # ranges of damaged MiB that a reason names


def verify_folder(
    path: Path | str,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Bad:
    """Check every byte of a data folder; returns (file name, what is wrong) of bad files.

    Empty where all is well.

    threads: files read at a time, by default one per core, at most 8.
    Raises MissingInputError where there is no folder.
    """
    path = Path(path)
    try:
        manifest, _ = Manifest.read(path)
    except MissingInputError:
        raise
    except NanogptError as error:
        return [(MANIFEST, str(error))]
    return verify_files(path, manifest, progress, threads)


def verify_files(
    folder: Path,
    manifest: Manifest,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Bad:
    """As verify_folder, where the manifest is known to be good."""
    shards = {
        shard.file.name: shard for split in manifest.splits.values() for shard in split.shards
    }
    files = manifest.files()
    meter = ReadProgress(sum(file.bytes for file in files), progress)

    def problem(file: FileRecord) -> str | None:
        try:
            check_size(folder / file.name, file)
            if shard := shards.get(file.name):
                return _shard_problem(folder, shard, manifest.tokenizer, meter)
            digest = hashlib.sha256()
            for data in read_blocks(folder / file.name, file.bytes, 0, meter):
                digest.update(data)
            return (
                None
                if digest.hexdigest() == file.sha256
                else f"its sha256 is not the one in {MANIFEST}"
            )
        except NanogptError as error:
            return str(error)

    reasons = in_threads(problem, files, meter, threads)
    bad = [(file.name, reason) for file, reason in zip(files, reasons, strict=True) if reason]
    if not bad:
        try:
            data = DataFolder.open(folder)
            for split in data.splits.values():
                split.document_ends()
        except NanogptError as error:
            bad.append((MANIFEST, str(error)))
    return bad


def in_short(folder: Path, name: str, reason: str) -> str:
    """A bad file and its reason for an error line: without the path again, nor what to type."""
    what = reason.removeprefix(f"{shown(folder / name)} ").partition("; ")[0]
    return f"{clipped(name, 50)}: {clipped(what, 60)}"


def unlisted_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names in a data folder that its manifest does not know. Raises StorageError."""
    known = {MANIFEST, *(file.name for file in manifest.files())}
    with storage_errors(folder):
        return sorted(name for name in set(os.listdir(folder)) - known if not is_debris(name))


def _shard_problem(
    folder: Path,
    shard: ShardRecord,
    tokenizer: TokenizerRecord,
    meter: ReadProgress,
) -> str | None:
    path, first = folder / shard.file.name, first_id(shard.layout)
    digest, header, crcs = hashlib.sha256(), b"", []
    for data in read_blocks(path, shard.file.bytes, first, meter):
        digest.update(data)
        if first and not header:
            header = data
        else:
            crcs.append(zlib.crc32(data))
    try:
        known = read_numbers(folder / shard.checksums.name, shard.checksums, "<u4").tolist()
    except NanogptError:
        known = None
    if digest.hexdigest() != shard.file.sha256:
        return _damage(header, crcs, known, shard, tokenizer)
    return (
        None
        if known in (None, crcs)
        else f"{shard.checksums.name} holds the checksums of other ids"
    )


def _damage(
    header: bytes,
    crcs: list[int],
    known: list[int] | None,
    shard: ShardRecord,
    tokenizer: TokenizerRecord,
) -> str:
    """Where a shard whose sha256 is wrong is damaged, in words."""
    places = []
    try:
        check_header(header, shard, tokenizer, shard.file.name)
    except BadDataError:
        places.append("header")
    if known is None:
        return f"damaged, where cannot be told: {shard.checksums.name} is bad too"
    if len(known) != len(crcs):
        places.append(f"ids, or {shard.checksums.name} is another shard's")
    elif wrong := [
        block for block, both in enumerate(zip(crcs, known, strict=True)) if both[0] != both[1]
    ]:
        places.append(f"MiB {_ranges(wrong)} of {len(crcs)}")
    return f"damaged in {' and '.join(places or ['header'])}"


def _ranges(numbers: list[int]) -> str:
    """[0, 4, 5, 6] → "0, 4-6"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    more = f" and {len(words) - SHOWN} more places" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
