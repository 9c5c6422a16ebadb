"""A shard: llm.c's format, 256 little-endian int32 words, then token ids and nothing else.

    words     content
    0, 1, 2   magic, version, tokens: as llm.c and modded-nanogpt read them
    3         version of what follows, which is ours
    4, 5      vocabulary size; end-of-text id, or -1
    6, 7      largest id; documents that end in this shard
    8 … 15    fingerprint of the tokenizer, 32 bytes
    16 … 23   sha256 of the ids' bytes
    24 … 254  zero
    255       CRC32 of the words before it

Shards that were imported as they are may also be llm.c's own, where only words 0 … 2 count, or
nanoGPT's, which are nothing but ids: `layout` in the manifest tells.

Beside each shard lie `.crc32`, one CRC32 (uint32) for each MiB of ids, and `.ends`, for each
document that ends in the shard the position behind its last id (uint64, in ids from the shard's
start).
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import id_type

MAGIC = {2: (20240520, 1), 4: (20240801, 7)}  # bytes per id: llm.c's magic and version
VERSION = 1
HEADER_BYTES = 1024
BLOCK_BYTES = 1 << 20  # of ids under one CRC32
SHARD_TOKENS = 100_000_000
MAX_SHARD_BYTES = 2**31 - 1  # llm.c keeps offsets in an int

_WORDS = struct.Struct("<8i32s32s924x")


def first_id(layout: str) -> int:
    """Where the ids begin in a shard of that layout, in bytes."""
    return 0 if layout == "raw" else HEADER_BYTES


def llm_c_header(data: bytes, name: str) -> tuple[int, int] | None:
    """Bytes per id and number of ids, as llm.c reads the first 1,024 bytes of a shard.

    None: no magic, so raw ids.

    Raises BadDataError, naming the file as `name`, where the magic is right and the rest is not.
    """
    magic = int.from_bytes(data[:4], "little", signed=True)
    width = next((width for width, (known, _) in MAGIC.items() if magic == known), None)
    if width is None:
        return None
    if len(data) < HEADER_BYTES:
        raise BadDataError(
            f"{name} ends in its header, {len(data)} of {HEADER_BYTES} bytes; get it again"
        )
    _, version, tokens = struct.unpack_from("<3i", data)
    if version != MAGIC[width][1]:
        raise BadDataError(
            f"{name} has llm.c's version {version} in its header, only {MAGIC[width][1]} is known"
        )
    if tokens < 1:
        raise BadDataError(
            f"{name} has {tokens:,} ids by its header; get it again, or leave it out"
        )
    return width, tokens


def shard_name(name: str, split: str, index: int) -> str:
    """File name of a shard, e.g. openwebtext_train_000000.bin."""
    return f"{name}_{split}_{index:06d}.bin"


@dataclass(frozen=True)
class Header:
    """The first 1,024 bytes of a shard.

    fingerprint and sha256 in hexadecimal; eot_id None: there is none.
    """

    tokens: int
    n_vocab: int
    eot_id: int | None
    largest_id: int
    documents: int
    fingerprint: str
    sha256: str

    @property
    def dtype(self) -> np.dtype:
        return id_type(self.n_vocab)

    @property
    def file_bytes(self) -> int:
        """Size of the whole shard."""
        return HEADER_BYTES + self.tokens * self.dtype.itemsize

    def pack(self) -> bytes:
        words = (*MAGIC[self.dtype.itemsize], self.tokens, VERSION, self.n_vocab)
        eot = -1 if self.eot_id is None else self.eot_id
        hashes = bytes.fromhex(self.fingerprint), bytes.fromhex(self.sha256)
        head = _WORDS.pack(*words, eot, self.largest_id, self.documents, *hashes)
        return head + zlib.crc32(head).to_bytes(4, "little")

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Read a header.

        Raises BadDataError, naming the file as `name`, for anything that `pack` would not write.
        """
        if len(data) != HEADER_BYTES:
            raise BadDataError(
                f"{name} ends in its header, {len(data)} of {HEADER_BYTES} bytes; prepare it again"
            )
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise BadDataError(
                f"{name}: damaged header, or not a shard that nanogpt prepare wrote; prepare it "
                "again"
            )
        magic, version, tokens, ours, n_vocab, eot, largest, documents, tokenizer, digest = (
            _WORDS.unpack(data[:-4])
        )
        if ours != VERSION:
            raise BadDataError(
                f"{name} has header version {ours}, this nanogpt reads {VERSION}; update nanogpt"
            )
        eot_id = None if eot == -1 else eot
        header = cls(tokens, n_vocab, eot_id, largest, documents, tokenizer.hex(), digest.hex())
        if (
            (magic, version) != MAGIC[header.dtype.itemsize]
            or tokens < 1
            or not 0 <= largest < n_vocab
        ):
            raise BadDataError(f"{name}: its header contradicts itself; prepare it again")
        return header
