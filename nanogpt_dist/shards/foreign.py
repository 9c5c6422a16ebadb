"""A file of ids that another program wrote, nanoGPT raw or llm.c with a header: what it is, and what is in it.

Source of the formats: nanoGPT's data/*/prepare.py; llm.c's dev/data/data_common.py, which modded-nanogpt follows.
"""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.shards.format import HEADER_BYTES, Header, first_id, llm_c_header
from nanogpt_dist.shards.manifest import Eot, Layout
from nanogpt_dist.shards.scan import Meter, read_blocks
from nanogpt_dist.storage.durable import open_plain, shown, told
from nanogpt_dist.tokenizer import Tokenizer


@dataclass(frozen=True)
class Foreign:
    """A file of ids. width: bytes per id; eot: where its kind of program puts end of text."""

    path: Path
    layout: Layout
    width: int
    tokens: int
    bytes: int
    eot: Eot


def look_at(path: Path, raw_width: int) -> Foreign:
    """What a file of ids is, by its size and first bytes; raw_width: bytes per id where it has no header.

    Raises BadDataError where it is neither form, StorageError.
    """
    name = shown(path)
    with told(path), open_plain(path) as file:
        head, size = file.read(HEADER_BYTES), path.stat().st_size
    if size == 0:
        raise BadDataError(f"{name} is empty; get it again, or leave it out")
    if found := llm_c_header(head, name):
        width, tokens = found
        if size != (expected := HEADER_BYTES + tokens * width):
            raise BadDataError(
                f"{name} has {size:,} bytes, its header says {tokens:,} ids, so {expected:,}; get it again"
            )
        return Foreign(path, "llm.c", width, tokens, size, "append" if _is_ours(head) else "prepend")
    if size % raw_width:
        raise BadDataError(
            f"{name} has {size:,} bytes and neither llm.c's header nor {8 * raw_width}-bit ids: cut off, or no ids"
        )
    return Foreign(path, "raw", raw_width, size // raw_width, size, "append")


def _is_ours(head: bytes) -> bool:
    """Whether nanogpt prepare wrote that header."""
    try:
        Header.parse(head, "")
    except BadDataError:
        return False
    return True


@dataclass(frozen=True)
class Content:
    """All that one pass over a file tells. eots: (N,) int64 positions of end of text; text_bytes: UTF-8 bytes."""

    sha256: str
    crcs: np.ndarray
    largest_id: int
    eots: np.ndarray
    text_bytes: int


def read_through(file: Foreign, tokenizer: Tokenizer, lengths: np.ndarray, meter: Meter) -> Content:
    """Read a file once. lengths: (n_vocab,) bytes of text of each id, as tokenizer.byte_lengths() tells.

    Raises BadDataError at the first id that the tokenizer does not have, StorageError.
    """
    digest, crcs, largest, text_bytes, position = hashlib.sha256(), [], 0, 0, 0
    eots = [np.empty(0, np.int64)]
    blocks = read_blocks(file.path, file.bytes, first_id(file.layout), meter)
    if first_id(file.layout):
        digest.update(next(blocks))
    for data in blocks:
        digest.update(data)
        crcs.append(zlib.crc32(data))
        ids = np.frombuffer(data, f"<u{file.width}")
        if (most := int(ids.max())) >= tokenizer.n_vocab:
            _refuse(file, ids, position, tokenizer)
        largest = max(largest, most)
        text_bytes += int(lengths.take(ids).sum())
        if tokenizer.eot_id is not None:
            eots.append(np.flatnonzero(ids == tokenizer.eot_id) + position)
        position += len(ids)
    return Content(digest.hexdigest(), np.array(crcs, "<u4"), largest, np.concatenate(eots), text_bytes)


def _refuse(file: Foreign, ids: np.ndarray, position: int, tokenizer: Tokenizer) -> None:
    first = int(np.flatnonzero(ids >= tokenizer.n_vocab)[0])
    hint = "; --uint32?" if file.layout == "raw" and file.width == 2 else "; is it of another?"
    raise BadDataError(
        f"{shown(file.path)}: id {ids[first]} at position {position + first:,} is not in tokenizer "
        f"{tokenizer.name[:20]}, 0 to {tokenizer.n_vocab - 1}{hint}"
    )


def document_ends(sizes: list[int], eots: list[np.ndarray], eot: Eot | None) -> list[np.ndarray]:
    """For each shard of a split, the positions in it behind the last id of each document that ends there, int64.

    sizes: ids in each shard; eots: positions of end of text in each. append: a document ends behind each end of text;
    prepend: before each, unless it is the split's first id; and in any case with the split's last id. A document may
    cross shards.
    """
    starts = np.cumsum([0, *sizes])
    found = np.concatenate([positions + start for positions, start in zip(eots, starts, strict=False)])
    ends = {"append": found + 1, "prepend": found[found > 0], None: found[:0]}[eot]
    if not len(ends) or ends[-1] != starts[-1]:
        ends = np.append(ends, starts[-1])
    cuts = np.searchsorted(ends, starts, side="right")  # an end at a border is of the shard before it
    return [ends[a:b] - start for a, b, start in zip(cuts, cuts[1:], starts, strict=False)]
