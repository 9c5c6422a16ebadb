"""A file of ids that nanoGPT or llm.c wrote: its format, and what is in it.

Source of the formats: nanoGPT's data/*/prepare.py; llm.c's dev/data/data_common.py, which
modded-nanogpt follows.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt_dist.data.format import HEADER_BYTES, Header, first_id, llm_c_header
from nanogpt_dist.data.manifest import Eot, Layout
from nanogpt_dist.data.scan import ReadProgress, read_blocks
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import open_plain, shown, storage_errors
from nanogpt_dist.tokenizer import Tokenizer

# what is looked at of a file, and how many 64-bit words tell something
SAMPLE_BYTES, SAMPLE_WORDS = 1 << 16, 4


@dataclass(frozen=True)
class ForeignShard:
    """A file of ids. width: bytes per id; eot: where its kind of program puts end of text."""

    path: Path
    layout: Layout
    width: int
    tokens: int
    bytes: int
    eot: Eot


def look_at(path: Path, uint32: bool | None, n_vocab: int) -> ForeignShard:
    """What a file of ids is, by its size and some of its bytes.

    uint32: whether it holds 32-bit ids where it has no header; None: 16-bit ones, unless they look
    otherwise. n_vocab: of the tokenizer that is said to have made them. Raises BadDataError where
    it is neither form, StorageError.
    """
    raw_width = 4 if uint32 else 2
    name = shown(path)
    with storage_errors(path), open_plain(path) as file:
        head, size = file.read(HEADER_BYTES), path.stat().st_size
    if size == 0:
        raise BadDataError(f"{name} is empty; get it again, or leave it out")
    if found := llm_c_header(head, name):
        width, tokens = found
        if size != (expected := HEADER_BYTES + tokens * width):
            raise BadDataError(
                f"{name} has {size:,} bytes, its header says {tokens:,} ids, so {expected:,}; get "
                "it again"
            )
        return ForeignShard(
            path, "llm.c", width, tokens, size, "append" if _is_ours(head) else "prepend"
        )
    _refuse_other_program(head, path)
    if size % raw_width:
        raise BadDataError(
            f"{name} has {size:,} bytes and neither llm.c's header nor {8 * raw_width}-bit ids: "
            "cut off, or no ids"
        )
    _refuse_wider(path, size, uint32, n_vocab)
    return ForeignShard(path, "raw", raw_width, size // raw_width, size, "append")


def _refuse_other_program(head: bytes, path: Path) -> None:
    """Raises BadDataError for files of known programs whose first bytes would be taken as ids."""
    if head.startswith(b"\x93NUMPY"):
        raise BadDataError(numpy_advice(path))
    for magic, what in (
        (b"PK\x03\x04", "a zip archive, as torch.save writes"),
        (b"\x1f\x8b", "packed by gzip"),
    ):
        if head.startswith(magic):
            raise BadDataError(
                f"{shown(path)} is {what}; write its ids as 16-bit integers and nothing else"
            )


def numpy_advice(path: Path) -> str:
    """How to make a file of ids of an array in numpy's own format."""
    # what a shell does nothing with
    stem = path.stem if re.fullmatch(r"[\w.-]{1,40}", path.stem) else "FILE"
    name, new = f"{stem}.npy", f"{stem}.bin"
    line = f"import numpy; numpy.load('{name}').tofile('{new}')"
    return f'{shown(path)} has numpy\'s header; without it: python3 -c "{line}"'


def _refuse_wider(path: Path, size: int, uint32: bool | None, n_vocab: int) -> None:
    """Raise BadDataError where ids look wider than they are taken for: 32-bit or 64-bit."""
    found = [_width_by_look(sample, n_vocab) for sample in _samples(path, size)]
    seems = found[0] if len(set(found)) == 1 else 2
    name = shown(path)
    if seems == 8 and uint32 is not False and size % 8 == 0:
        short, kind = ("uint16", "") if n_vocab <= 1 << 16 else ("uint32", ", then --uint32")
        there = path.name[-40:]
        raise BadDataError(
            f'{name} looks like int64; python3 -c "import numpy as n; '
            f"n.fromfile('{there}','i8').astype('{short}').tofile('{short}-{there}')\"{kind}"
        )
    if seems == 4 and uint32 is None and size % 4 == 0:
        raise BadDataError(
            f"{name} looks like uint32 ids: every second 16 bits hold next to nothing; give "
            "--uint32, or --no-uint32 if they are 16-bit all the same"
        )


def _samples(path: Path, size: int) -> Iterator[np.ndarray]:
    """The start of a file and a piece of its middle, as 16-bit integers."""
    with storage_errors(path), open_plain(path) as file:
        for start in {0, max(0, min(size // 2, size - SAMPLE_BYTES)) // 8 * 8}:
            file.seek(start)
            data = file.read(SAMPLE_BYTES)
            yield np.frombuffer(data[: len(data) // 8 * 8], "<u2")


def _width_by_look(sample: np.ndarray, n_vocab: int) -> int:
    """Bytes per id in a sample: 2, 4 or 8.

    By the upper halves, which are next to nothing in wider ids.
    """
    words, upper = sample.reshape(-1, 4), (n_vocab - 1) >> 16
    if (
        len(words) < SAMPLE_WORDS
        or int(words[:, ::2].max()) <= upper
        or (words[:, 1::2] > upper).any()
    ):
        return 2
    return 4 if words[:, 2:].any() else 8


def _is_ours(head: bytes) -> bool:
    """Whether nanogpt prepare wrote that header."""
    try:
        Header.parse(head, "")
    except BadDataError:
        return False
    return True


@dataclass(frozen=True)
class Content:
    """All that one pass over a file tells.

    eots: (N,) int64 positions of end of text; text_bytes: UTF-8 bytes.
    """

    sha256: str
    crcs: np.ndarray
    largest_id: int
    eots: np.ndarray
    text_bytes: int


def read_through(
    file: ForeignShard, tokenizer: Tokenizer, lengths: np.ndarray, meter: ReadProgress
) -> Content:
    """Read a file once.

    lengths: (n_vocab,) bytes of text of each id, as tokenizer.byte_lengths() tells.

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
    return Content(
        digest.hexdigest(), np.array(crcs, "<u4"), largest, np.concatenate(eots), text_bytes
    )


def _refuse(file: ForeignShard, ids: np.ndarray, position: int, tokenizer: Tokenizer) -> None:
    first = int(np.flatnonzero(ids >= tokenizer.n_vocab)[0])
    hint = (
        "; are they 16-bit, without --uint32?"
        if file.layout == "raw" and file.width == 4
        else "; is it of another?"
    )
    raise BadDataError(
        f"{shown(file.path)}: id {ids[first]} at position {position + first:,} is not in tokenizer "
        f"{tokenizer.name[:20]}, 0 to {tokenizer.n_vocab - 1}{hint}"
    )


def document_ends(sizes: list[int], eots: list[np.ndarray], eot: Eot | None) -> list[np.ndarray]:
    """For each shard of a split, the positions at which documents end in it, int64.

    Behind the last id of each document.

    sizes: ids in each shard; eots: positions of end of text in each. append: a document ends behind
    each end of text; prepend: before each, unless it is the split's first id; and in any case with
    the split's last id. A document may cross shards.
    """
    starts = np.cumsum([0, *sizes])
    found = np.concatenate(
        [positions + start for positions, start in zip(eots, starts, strict=False)]
    )
    ends = {"append": found + 1, "prepend": found[found > 0], None: found[:0]}[eot]
    if not len(ends) or ends[-1] != starts[-1]:
        ends = np.append(ends, starts[-1])
    # an end at a border is of the shard before it
    cuts = np.searchsorted(ends, starts, side="right")
    return [ends[a:b] - start for a, b, start in zip(cuts, cuts[1:], starts, strict=False)]
