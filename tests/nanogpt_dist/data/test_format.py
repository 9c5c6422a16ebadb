"""Headers of shards: their words, and that one which no writer of ours makes is refused."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import ShardWriter
from nanogpt_dist.data.format import Header, first_id, llm_c_header
from nanogpt_dist.errors import BadDataError

GOOD = Header(
    tokens=1,
    n_vocab=257,
    eot_id=None,
    largest_id=0,
    documents=0,
    fingerprint="ab" * 32,
    sha256="cd" * 32,
)
LARGE = replace(GOOD, n_vocab=70_000, eot_id=69_999, largest_id=69_999, tokens=2**30, documents=5)


@pytest.mark.parametrize("header", [GOOD, LARGE, replace(GOOD, eot_id=0, largest_id=256)])
def test_a_header_reads_back(header: Header) -> None:
    data = header.pack()
    assert len(data) == 1024
    assert Header.parse(data, "x.bin") == header
    width = 2 if header.n_vocab <= 65_536 else 4
    assert llm_c_header(data, "x.bin") == (width, header.tokens)
    assert header.file_bytes == 1024 + width * header.tokens


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"tokens": -1}, {"largest_id": 257}, {"largest_id": -1}, {"n_vocab": 70_000}],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    """Its CRC32 is right. 70,000 ids need llm.c's magic of four bytes."""
    data = replace(GOOD, **wrong).pack()
    if "n_vocab" in wrong:
        data = sealed(GOOD.pack()[:12] + data[12:-4])
    with pytest.raises(BadDataError, match=r"x\.bin: its header contradicts itself"):
        Header.parse(data, "x.bin")


@pytest.mark.parametrize("version", [0, 2])
def test_a_header_of_another_version_is_told_of(version: int) -> None:
    data = GOOD.pack()
    other = sealed(data[:12] + struct.pack("<i", version) + data[16:-4])
    with pytest.raises(BadDataError, match=f"header version {version}, this nanogpt reads 1; upd"):
        Header.parse(other, "x.bin")


def sealed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize(("words", "width"), [((20240520, 1), 2), ((20240801, 7), 4)])
def test_llm_cs_own_headers(words: tuple[int, int], width: int) -> None:
    def read(magic: int, version: int, tokens: int, size: int = 1024) -> tuple[int, int] | None:
        return llm_c_header(struct.pack("<3i", magic, version, tokens).ljust(size, b"\0"), "x.bin")

    assert read(*words, 1) == (width, 1)
    for tokens in (0, -1):
        with pytest.raises(BadDataError, match=f"x.bin has {tokens} ids by its header"):
            read(*words, tokens)
    for version in (words[1] - 1, words[1] + 1):
        with pytest.raises(BadDataError, match=f"llm.c's version {version} .* only {words[1]} is"):
            read(words[0], version, 1)
    with pytest.raises(BadDataError, match="ends in its header, 1023 of 1024 bytes"):
        read(*words, 1, size=1023)
    for magic in (words[0] - 1, words[0] + 1, 0):
        assert read(magic, words[1], 1) is None


def test_where_the_ids_begin() -> None:
    assert [first_id(layout) for layout in ("raw", "llm.c", "nanogpt")] == [0, 1024, 1024]


@pytest.mark.parametrize(("n_vocab", "most"), [(257, 1_073_741_311), (70_000, 536_870_655)])
def test_no_shard_passes_what_llm_c_can_count(n_vocab: int, most: int, tmp_path: Path) -> None:
    """2^31 − 1 bytes with the header; fewer ids where that is asked for."""
    tokenizer = tokenizers.char("".join(map(chr, range(0x10000, 0x10000 + n_vocab))))
    writer = ShardWriter(tmp_path, "x", "train", tokenizer, 2**31)
    assert writer.shard_tokens == most
    assert 1024 + most * writer.dtype.itemsize < 2**31 <= 1024 + (most + 1) * writer.dtype.itemsize
    by_default = ShardWriter(tmp_path, "x", "train", tokenizer)
    assert by_default.shard_tokens == 100_000_000
