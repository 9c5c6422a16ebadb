"""A prepared data folder, checked when opened and when read: `DataFolder.open(path).split("train").read(0, 1024)`.

Opening looks at every size, header and small file, but hashes no shard; reading checks each MiB of ids the first time
that it is touched. Reads go through pread, so memory does not grow with what was read.
"""

import hashlib
import os
import weakref
import zlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from nanogpt_dist.errors import BadDataError, MissingInputError, NanogptError
from nanogpt_dist.shards.format import BLOCK_BYTES, HEADER_BYTES, Header
from nanogpt_dist.shards.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    ShardRecord,
    SplitName,
    SplitRecord,
    TokenizerRecord,
)
from nanogpt_dist.storage.durable import open_plain, sha256_file, shown, told
from nanogpt_dist.tokenizer import Tokenizer, id_type, load


class DataFolder:
    """What `nanogpt prepare` wrote. dataset_id: sha256 (hex) of manifest.json."""

    def __init__(self, path: Path, manifest: Manifest, dataset_id: str, tokenizer: Tokenizer) -> None:
        self.path, self.manifest, self.dataset_id, self.tokenizer = path, manifest, dataset_id, tokenizer
        self.splits = {name: Split(path, record, manifest.tokenizer) for name, record in manifest.splits.items()}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder and check it: the manifest, the tokenizer, and the size and header of every shard.

        Raises MissingInputError, BadDataError, StorageError.
        """
        path = Path(path)
        manifest, dataset_id = Manifest.read(path)
        return cls(path, manifest, dataset_id, _open_tokenizer(path, manifest.tokenizer))

    def split(self, name: SplitName) -> "Split":
        return self.splits[name]


class Split:
    """The ids of all shards of a split, as one sequence of `tokens` ids below `n_vocab`."""

    def __init__(self, folder: Path, record: SplitRecord, tokenizer: TokenizerRecord) -> None:
        self.tokens, self.documents, self.bytes = record.tokens, record.documents, record.bytes
        self.n_vocab, self.dtype = tokenizer.n_vocab, id_type(tokenizer.n_vocab)
        self._shards = [_Shard(folder, shard, tokenizer) for shard in record.shards]
        self._starts = [0, *accumulate(shard.tokens for shard in record.shards)]

    def read(self, start: int, length: int) -> np.ndarray:
        """A copy of the ids at start … start + length, (length,) uint16 or uint32; it may span shards.

        Raises IndexError outside of the split, BadDataError naming the shard and its damaged MiB, StorageError.
        """
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"ids {start} to {start + length} of a split of {self.tokens}")
        ids = np.empty(length, self.dtype)
        done = 0
        while done < length:
            index = bisect_right(self._starts, start + done) - 1
            count = min(length - done, self._starts[index + 1] - start - done)
            self._shards[index].read_into(ids[done : done + count], start + done - self._starts[index])
            done += count
        return ids

    def document_ends(self) -> np.ndarray:
        """(documents,) int64: the position behind the last id of each document. Raises BadDataError, StorageError."""
        parts = [shard.document_ends() + start for shard, start in zip(self._shards, self._starts, strict=False)]
        return np.concatenate(parts)


class _Shard:
    """One open shard."""

    def __init__(self, folder: Path, record: ShardRecord, tokenizer: TokenizerRecord) -> None:
        self.path, self.record = folder / record.file.name, record
        self.ends_path = folder / record.ends.name
        self.dtype = id_type(tokenizer.n_vocab)
        _check_size(self.ends_path, record.ends)
        self.crcs = np.frombuffer(_read_checked(folder / record.checksums.name, record.checksums), "<u4")
        _check_size(self.path, record.file)
        with told(self.path), open_plain(self.path) as file:
            self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd)
        self._check_header(tokenizer)
        self.verified = np.zeros(len(self.crcs), bool)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` with the ids from `start`, after checking each MiB that it touches for the first time."""
        first, last = start * out.itemsize, (start + len(out)) * out.itemsize - 1
        for block in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1):
            if not self.verified[block]:
                self._verify(block)
        data = self._pread(out.nbytes, HEADER_BYTES + first)
        if len(data) != out.nbytes:
            raise BadDataError(f"{shown(self.path)} was cut off while open; prepare the data again")
        out[:] = np.frombuffer(data, self.dtype)

    def document_ends(self) -> np.ndarray:
        return np.frombuffer(_read_checked(self.ends_path, self.record.ends), "<u8").astype(np.int64)

    def _check_header(self, tokenizer: TokenizerRecord) -> None:
        name, record = shown(self.path), self.record
        header = Header.parse(self._pread(HEADER_BYTES, 0), name)
        if header.fingerprint != tokenizer.fingerprint:
            raise BadDataError(f"{name} is by another tokenizer than the folder's {tokenizer.name}; prepare it again")
        in_header = header.tokens, header.documents, header.largest_id, header.file_bytes, header.n_vocab, header.eot_id
        in_manifest = record.tokens, record.documents, record.largest_id, record.file.bytes
        blocks = -(-(record.file.bytes - HEADER_BYTES) // BLOCK_BYTES)
        if in_header != (*in_manifest, tokenizer.n_vocab, tokenizer.eot_id) or len(self.crcs) != blocks:
            raise BadDataError(f"{name}: its header and {MANIFEST} disagree; files were mixed up, prepare it again")

    def _verify(self, block: int) -> None:
        offset = HEADER_BYTES + block * BLOCK_BYTES
        data = self._pread(min(BLOCK_BYTES, self.record.file.bytes - offset), offset)
        if zlib.crc32(data) != self.crcs[block] or np.frombuffer(data, self.dtype).max() > self.record.largest_id:
            raise BadDataError(f"{shown(self.path)} is damaged in MiB {block}; restore a copy or prepare it again")
        self.verified[block] = True

    def _pread(self, length: int, offset: int) -> bytes:
        """`length` bytes, fewer at the end of the file."""
        parts = []
        with told(self.path):
            while length and (part := os.pread(self.fd, length, offset)):
                parts.append(part)
                length, offset = length - len(part), offset + len(part)
        return b"".join(parts)


def verify_folder(path: Path | str) -> list[tuple[str, str]]:
    """Check every byte of a data folder; a list of (file name, what is wrong with it), empty where all is well.

    Raises MissingInputError where there is no folder.
    """
    path = Path(path)
    try:
        manifest, _ = Manifest.read(path)
    except MissingInputError:
        raise
    except NanogptError as error:
        return [(MANIFEST, str(error))]
    bad = [(record.name, reason) for record in manifest.files() if (reason := _problem(path / record.name, record))]
    if not bad:
        try:
            DataFolder.open(path)
        except NanogptError as error:
            bad.append((MANIFEST, str(error)))
    return bad


def _problem(path: Path, record: FileRecord) -> str | None:
    try:
        _check_size(path, record)
        return None if sha256_file(path) == record.sha256 else f"its sha256 is not the one in {MANIFEST}"
    except NanogptError as error:
        return str(error)


def _open_tokenizer(folder: Path, record: TokenizerRecord) -> Tokenizer:
    path = folder / record.file.name
    if not path.exists():
        raise BadDataError(f"{shown(path)} is missing; restore a copy or prepare the data again")
    tokenizer = load(path)
    if tokenizer.fingerprint != record.fingerprint:
        raise BadDataError(
            f"{shown(path)} is tokenizer {tokenizer.name} ({tokenizer.n_vocab} ids), not {record.name} "
            f"({record.n_vocab} ids) that made the shards; restore it or prepare again"
        )
    _read_checked(path, record.file)
    return tokenizer


def _check_size(path: Path, record: FileRecord) -> None:
    if path.is_symlink():
        raise BadDataError(f"{shown(path)} is a symbolic link, which is not followed; put the file itself there")
    if not path.is_file():
        raise BadDataError(f"{shown(path)} is missing; restore a copy or prepare the data again")
    if (size := path.stat().st_size) != record.bytes:
        raise BadDataError(f"{shown(path)} has {size:,} bytes, expected {record.bytes:,}; prepare the data again")


def _read_checked(path: Path, record: FileRecord) -> bytes:
    """All bytes of a small file, if they are those of the record."""
    _check_size(path, record)
    with told(path), open_plain(path) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise BadDataError(f"{shown(path)} is damaged: its sha256 is not the one in {MANIFEST}; prepare the data again")
    return data
