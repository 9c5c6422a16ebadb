"""One shard of a prepared folder, checked as it is opened and as each MiB is first read."""

import zlib
from pathlib import Path

import numpy as np

from nanogpt_dist.data.files import OpenFile, OpenFiles, check_size, read_numbers
from nanogpt_dist.data.format import BLOCK_BYTES, HEADER_BYTES, Header, first_id, llm_c_header
from nanogpt_dist.data.manifest import MANIFEST, ShardRecord, TokenizerRecord
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown


def width_of(record: ShardRecord) -> int | None:
    """Bytes per id by the size of the file; None: the size fits no number of bytes."""
    payload = record.file.bytes - first_id(record.layout)
    return next(
        (width for width in (2, 4) if record.tokens and payload == record.tokens * width), None
    )


def check_header(data: bytes, record: ShardRecord, tokenizer: TokenizerRecord, name: str) -> None:
    """Raise BadDataError where the header or record of a shard is not what is expected.

    That is what manifest and tokenizer say.
    """
    disagree = BadDataError(
        f"{name}: its header and {MANIFEST} disagree; files were mixed up, prepare it again"
    )
    width = width_of(record)
    if width is None or record.largest_id >= tokenizer.n_vocab:
        raise disagree
    if record.layout == "llm.c" and llm_c_header(data, name) != (width, record.tokens):
        raise disagree
    if record.layout != "nanogpt":
        return
    header = Header.parse(data, name)
    if header.fingerprint != tokenizer.fingerprint:
        raise BadDataError(
            f"{name} is by another tokenizer than the folder's {tokenizer.name}; prepare it again"
        )
    in_header = (
        header.tokens,
        header.documents,
        header.largest_id,
        header.file_bytes,
        header.n_vocab,
        header.eot_id,
    )
    in_manifest = record.tokens, record.documents, record.largest_id, record.file.bytes
    if in_header != (*in_manifest, tokenizer.n_vocab, tokenizer.eot_id):
        raise disagree


class Shard:
    """The ids of one shard.

    Raises BadDataError, StorageError where it, or a sidecar, is not what the record says.
    """

    def __init__(
        self,
        folder: Path,
        record: ShardRecord,
        tokenizer: TokenizerRecord,
        files: OpenFiles,
    ) -> None:
        self.path, self.record, self.tokenizer, self._files = (
            folder / record.file.name,
            record,
            tokenizer,
            files,
        )
        self.ends_path = folder / record.ends.name
        self.offset = first_id(record.layout)
        check_size(self.ends_path, record.ends)
        self.crcs = read_numbers(folder / record.checksums.name, record.checksums, "<u4")
        check_size(self.path, record.file)
        self._state: tuple[int, ...] | None = None  # of the file that is checked in `verified`
        self.verified = np.zeros(len(self.crcs), bool)
        self._open()
        self.dtype = np.dtype(f"<u{width_of(record)}")
        if len(self.crcs) != -(-(record.file.bytes - self.offset) // BLOCK_BYTES):
            raise BadDataError(
                f"{shown(self.path)} has not a checksum for each MiB; prepare the data again"
            )

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` (N,) with the ids from `start`.

        Each MiB is checked when it is touched for the first time.
        """
        file, width = self._open(), self.dtype.itemsize
        first, stop = start * width, (start + len(out)) * width
        for block in range(first // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
            if not self.verified[block]:
                self._verify(file, block)
        data = file.pread(stop - first, self.offset + first)
        if len(data) != stop - first:
            raise BadDataError(f"{shown(self.path)} was cut off while open; prepare the data again")
        out[:] = np.frombuffer(data, self.dtype)  # cannot wrap: no id is above largest_id

    def document_ends(self) -> np.ndarray:
        """(documents,) int64: positions behind the last id of each document that ends here."""
        ends = read_numbers(self.ends_path, self.record.ends, "<u8").astype(np.int64)
        borders = np.concatenate([[0], ends, [self.record.tokens]])
        if len(ends) != self.record.documents or (np.diff(borders) < 0).any():
            raise BadDataError(
                f"{shown(self.ends_path)}: not the document ends of its shard; prepare it again"
            )
        return ends

    def _open(self) -> OpenFile:
        """The open file.

        If it is not the one that was open before, nothing of it counts as checked.
        """
        file = self._files.get(self.path)
        if file.state != self._state:
            check_header(file.pread(HEADER_BYTES, 0), self.record, self.tokenizer, shown(self.path))
            self.verified[:] = False
            self._state = file.state
        return file

    def _verify(self, file: OpenFile, block: int) -> None:
        offset = self.offset + block * BLOCK_BYTES
        data = file.pread(min(BLOCK_BYTES, self.record.file.bytes - offset), offset)
        if (
            zlib.crc32(data) != self.crcs[block]
            or np.frombuffer(data, self.dtype).max() > self.record.largest_id
        ):
            raise BadDataError(
                f"{shown(self.path)} is damaged in MiB {block}; restore a copy or prepare it again"
            )
        self.verified[block] = True
