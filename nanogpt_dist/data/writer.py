"""A stream of token ids to shards.

Borders depend on the stream alone, not on how it arrives in pieces.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from nanogpt_dist.data.format import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MAX_SHARD_BYTES,
    SHARD_TOKENS,
    Header,
    shard_name,
)
from nanogpt_dist.data.manifest import FileRecord, ShardRecord
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import (
    fsync_folder,
    sha256_file,
    staging_name,
    storage_errors,
    write_atomic,
)
from nanogpt_dist.tokenizer import Tokenizer, id_type


class ShardWriter:
    """Writes one split of a data set as NAME_SPLIT_000000.bin and on, each with its two sidecars.

        with ShardWriter(folder, "text", "train", tokenizer) as writer:
            writer.write(ids, ends)
        writer.records

    A shard has its name only once it is whole and on the disk. Leaving the block with an error
    removes the one begun.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        split: str,
        tokenizer: Tokenizer,
        shard_tokens: int = SHARD_TOKENS,
        done: Sequence[ShardRecord] = (),
    ) -> None:
        """shard_tokens: ids in a shard; done: shards that are there.

        A shard has fewer ids where the file would pass 2^31 bytes.
        """
        self.folder, self.name, self.split = folder, name, split
        self.n_vocab, self.eot_id, self.fingerprint = (
            tokenizer.n_vocab,
            tokenizer.eot_id,
            tokenizer.fingerprint,
        )
        self.dtype = id_type(self.n_vocab)
        self.shard_tokens = min(
            shard_tokens, (MAX_SHARD_BYTES - HEADER_BYTES) // self.dtype.itemsize
        )
        self.records = list(done)
        self._shard: _OpenShard | None = None

    def write(self, ids: np.ndarray, ends: np.ndarray | list[int] | tuple[int, ...] = ()) -> None:
        """Append ids (N,).

        ends: for each document that ends in them, the position behind its last id (1 … N).

        Raises BadDataError for an id that the vocabulary does not have, StorageError.
        """
        ids, ends = self._checked(ids), np.asarray(ends, dtype=np.int64)
        assert not ends.size or 1 <= ends.min() <= ends.max() <= len(ids), (
            "a document ends outside of what is written"
        )
        start = 0
        while start < len(ids):
            if self._shard is None:
                path = self.folder / shard_name(self.name, self.split, len(self.records))
                self._shard = _OpenShard(path, self.dtype)
            stop = min(len(ids), start + self.shard_tokens - self._shard.tokens)
            self._shard.append(ids[start:stop], ends[(ends > start) & (ends <= stop)] - start)
            start = stop
            if self._shard.tokens == self.shard_tokens:
                self._finish_shard()

    def close(self) -> list[ShardRecord]:
        """Finish the last shard; what all of them are. Raises StorageError."""
        if self._shard is not None:
            self._finish_shard()
        return self.records

    def abort(self) -> None:
        """Remove the shard that is not finished; those before it stay."""
        if self._shard is not None:
            self._shard.abort()
            self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        """`ids` in the stored type; never wrapped."""
        assert np.issubdtype(ids.dtype, np.integer), ids.dtype
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.n_vocab:
            wrong = int(ids.max()) if int(ids.max()) >= self.n_vocab else int(ids.min())
            raise BadDataError(
                f"id {wrong} is outside the vocabulary, 0 to {self.n_vocab - 1}; check the "
                "tokenizer"
            )
        return ids.astype(self.dtype)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self.records.append(self._shard.commit(self.n_vocab, self.eot_id, self.fingerprint))
        self._shard = None


class _OpenShard:
    """A shard being written beside its place: room for the header, then ids, hashed."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.temporary, self.dtype = path, path.with_name(staging_name(path.name)), dtype
        self.tokens, self.largest_id = 0, 0
        self.ends: list[np.ndarray] = []  # positions in the shard
        self.sha256 = hashlib.sha256()
        self.block_crcs: list[int] = []
        self.block_crc, self.block_bytes = 0, 0  # of the block being filled
        with storage_errors(path, HEADER_BYTES):
            self.fd = os.open(
                self.temporary,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o666,
            )
            self._write(bytes(HEADER_BYTES))

    def append(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self.ends.append(ends + self.tokens)
        self.tokens += len(ids)
        self.largest_id = max(self.largest_id, int(ids.max()))
        data = ids.tobytes()
        self._write(data)
        self.sha256.update(data)
        self._add_to_blocks(memoryview(data))

    def commit(self, n_vocab: int, eot_id: int | None, fingerprint: str) -> ShardRecord:
        """Write sidecars, then the header, fsync, rename.

        So a shard with its name is whole and has its sidecars.
        """
        if self.block_bytes:
            self.block_crcs.append(self.block_crc)
        ends = np.concatenate(self.ends)
        checksums = _sidecar(
            self.path.with_suffix(".crc32"), np.array(self.block_crcs, dtype="<u4")
        )
        document_ends = _sidecar(self.path.with_suffix(".ends"), ends.astype("<u8"))
        digest = self.sha256.hexdigest()
        header = Header(
            self.tokens, n_vocab, eot_id, self.largest_id, len(ends), fingerprint, digest
        )
        with storage_errors(self.path, HEADER_BYTES):
            os.pwrite(self.fd, header.pack(), 0)
            os.fsync(self.fd)
            self._close()
            os.rename(self.temporary, self.path)
            fsync_folder(self.path.parent)
        return ShardRecord(
            tokens=self.tokens,
            documents=len(ends),
            largest_id=self.largest_id,
            file=FileRecord(
                name=self.path.name, bytes=header.file_bytes, sha256=sha256_file(self.path)
            ),
            checksums=checksums,
            ends=document_ends,
        )

    def abort(self) -> None:
        self._close()
        for path in (
            self.path,  # has its name where the folder's fsync has failed
            self.temporary,
            self.path.with_suffix(".crc32"),
            self.path.with_suffix(".ends"),
        ):
            path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def _write(self, data: bytes) -> None:
        # Before storage_errors() counts the free bytes, the unfinished file must be gone: they are
        # what a second try would have.
        with storage_errors(self.path, HEADER_BYTES + self.tokens * self.dtype.itemsize):
            try:
                rest = memoryview(data)
                while rest:  # write() may take less than it is given
                    rest = rest[os.write(self.fd, rest) :]
            except OSError:
                self.abort()
                raise

    def _add_to_blocks(self, data: memoryview) -> None:
        while data:
            part = data[: BLOCK_BYTES - self.block_bytes]
            self.block_crc = zlib.crc32(part, self.block_crc)
            self.block_bytes += len(part)
            if self.block_bytes == BLOCK_BYTES:
                self.block_crcs.append(self.block_crc)
                self.block_crc, self.block_bytes = 0, 0
            data = data[len(part) :]


def _sidecar(path: Path, values: np.ndarray) -> FileRecord:
    data = values.tobytes()
    write_atomic(path, data)
    return FileRecord(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
