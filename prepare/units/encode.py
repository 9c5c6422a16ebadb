"""One unit: documents of a few slices to token ids in files, and a record, written last."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from nanogpt_dist.data.manifest import Eot, SplitName, SplitRuleRecord
from nanogpt_dist.errors import BadDataError, TextError
from nanogpt_dist.storage.durable import staging_name, storage_errors
from nanogpt_dist.tokenizer import END_OF_TEXT, Tokenizer
from prepare.readers.documents import Document, Part
from prepare.units.plan import Slice
from prepare.units.split import SPLITS

FLUSH_IDS = 1 << 20
TRACE_BYTES = 256
WHOLE, EMPTY, REPLACED, SKIPPED = range(4)  # what became of a document

# For each document, or what of it lies in a slice: which of SPLITS; whether it ends here; what
# became of it; how often it holds the text of end of text; its ids, end of text included; its UTF-8
# bytes.
DOCUMENT = np.dtype(
    [
        ("split", "u1"),
        ("ends", "?"),
        ("status", "u1"),
        ("special", "<u4"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
    ]
)


@dataclass(frozen=True)
class Job:
    """A unit with all that it takes to encode it.

    plan: the plan's digest. max_documents, max_tokens: more of them are never needed.
    """

    unit: int
    plan: str
    slices: tuple[tuple[Slice, Part], ...]
    split: SplitRuleRecord
    eot: Eot | None
    max_documents: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class UnitRecord:
    """The files that a unit became, each with [bytes, CRC32].

    documents: the table of them.

    plan: the digest of the plan that it is a unit of. warning: of the tokenizer that has encoded
    it; not kept.
    """

    unit: int
    plan: str
    train: tuple[int, int]
    val: tuple[int, int]
    documents: tuple[int, int]
    warning: str = ""

    def to_json(self) -> bytes:
        return json.dumps(
            {name: value for name, value in asdict(self).items() if name != "warning"}
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises ValueError, TypeError or KeyError for what to_json did not write."""
        content = json.loads(data)
        train, val, documents = (
            (size, crc) for size, crc in map(content.get, (*SPLITS, "documents"))
        )
        if not all(type(n) is int for n in (content["unit"], *train, *val, *documents)):
            raise ValueError("a number is none")
        return cls(content["unit"], str(content["plan"]), train, val, documents)


def unit_path(folder: Path, unit: int, kind: str) -> Path:
    """A file of a unit; kind: train, val, documents or json."""
    return folder / f"{unit:06d}.{kind}"


def encode_unit(
    job: Job,
    tokenizer: Tokenizer,
    folder: Path,
    trace: Path | None = None,
) -> UnitRecord:
    """Encode a unit into `folder`, the record last, so that a unit with a record is whole.

    trace: a file that always names the document at hand. Raises BadDataError naming the document,
    StorageError.
    """
    parts = {name: _PartFile(unit_path(folder, job.unit, name)) for name in (*SPLITS, "documents")}
    try:
        _encode(job, tokenizer, _Splits(parts), parts["documents"], trace)
        files = {name: part.close() for name, part in parts.items()}
    except BaseException:
        for part in parts.values():
            part.abort()
        raise
    record = UnitRecord(
        job.unit, job.plan, files["train"], files["val"], files["documents"], tokenizer.warning
    )
    path = unit_path(folder, job.unit, "json")
    temporary = path.with_name(staging_name(path.name))
    with storage_errors(path):
        temporary.write_bytes(record.to_json())
        os.replace(temporary, path)
    return record


def _encode(
    job: Job,
    tokenizer: Tokenizer,
    splits: "_Splits",
    table: "_PartFile",
    trace: Path | None,
) -> None:
    """Write the ids of all documents in order, and the rows about them to `table`."""
    documents = tokens = 0
    rows: list[tuple[int, bool, int, int, int, int]] = []
    for piece, part, row, document in _documents(job):
        if trace:
            _note_down(trace, part.where(document))
        encoded, count = _Document(job, tokenizer, piece, row, document), 0
        try:
            splits.begin(document.text)
            for ids in encoded:
                count += len(ids)
                splits.add(encoded.split, ids)
        except TextError as error:
            if part.errors != "skip":
                raise BadDataError(
                    f"{part.where(document)}: {error}; --errors skip leaves it out"
                ) from None
            splits.take_back()
            encoded, count = (
                _Document(job, tokenizer, piece, row, replace(document, text="", skipped=True)),
                0,
            )
        tokens += count
        rows.append(
            (
                SPLITS.index(encoded.split),
                piece.ends,
                encoded.status,
                encoded.special,
                count,
                encoded.bytes,
            )
        )
        documents += piece.ends and encoded.status in (WHOLE, REPLACED)
        if (job.max_documents and documents >= job.max_documents) or (
            job.max_tokens and tokens >= job.max_tokens
        ):
            break
        if len(rows) >= 4096:
            table.write(np.array(rows, DOCUMENT))
            rows = []
    table.write(np.array(rows, DOCUMENT))
    splits.flush()


def _note_down(trace: Path, document: str) -> None:
    """In one write, which no kill can cut in two."""
    fd = os.open(trace, os.O_WRONLY | os.O_CREAT, 0o666)
    os.pwrite(fd, document.encode(errors="replace")[:TRACE_BYTES].ljust(TRACE_BYTES), 0)
    os.close(fd)


def _documents(job: Job) -> Iterator[tuple[Slice, Part, int, Document]]:
    """The documents of a unit, each with its slice, part of the file and number in the slice."""
    for piece, part in job.slices:
        for row, document in enumerate(part.documents()):
            yield piece, part, row, document


class _Document:
    """A document being encoded: iterate over its ids.

    Then `bytes`, `special` and `status` are known.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: Tokenizer,
        piece: Slice,
        row: int,
        document: Document,
    ) -> None:
        self.job, self.tokenizer, self.piece, self.document = job, tokenizer, piece, document
        text = document.text
        self.bytes, self.special, self.status = 0, 0, SKIPPED if document.skipped else EMPTY
        utf8 = (chunk.encode() for chunk in ((text,) if isinstance(text, str) else text))
        self.split = "train" if document.skipped else piece.split_of(utf8, row, job.split)

    def __iter__(self) -> Iterator[np.ndarray]:
        tail = ""
        eot = np.array([self.tokenizer.eot_id or 0], self.tokenizer.dtype)
        for text in self.tokenizer.pieces(self.document.text):
            if not self.bytes and self.job.eot == "prepend" and self.piece.begins:
                yield eot
            self.bytes += len(text.encode())
            self.special += (tail + text).count(END_OF_TEXT)
            tail = (tail + text)[1 - len(END_OF_TEXT) :]
            yield self.tokenizer.encode(text)
        if self.bytes:
            replaced = (
                self.piece.replaced
                or self.document.replaced
                or getattr(self.document.text, "replaced", False)
            )
            self.status = REPLACED if replaced else WHOLE
            if self.job.eot == "append" and self.piece.ends:
                yield eot


class _Splits:
    """The ids of both splits on their way to their files, in large pieces.

    A document can be taken back.
    """

    def __init__(self, files: Mapping[str, "_PartFile"]) -> None:
        self.files: dict[SplitName, _PartFile] = {split: files[split] for split in SPLITS}
        self.waiting: dict[SplitName, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.held = 0
        # arrays waiting, and how far the file was
        self.before: dict[SplitName, tuple[int, tuple[int, int]]] = {}

    def begin(self, text: str | Iterable[str]) -> None:
        """Begin a document.

        Of one that may be written in several pieces nothing else is in the buffers.
        """
        if not isinstance(text, str) or self.held + 4 * len(text) >= FLUSH_IDS:
            self.flush()
        self.before = {
            split: (len(self.waiting[split]), file.position) for split, file in self.files.items()
        }

    def add(self, split: SplitName, ids: np.ndarray) -> None:
        self.waiting[split].append(ids)
        self.held += len(ids)
        if self.held >= FLUSH_IDS:
            self.flush()

    def take_back(self) -> None:
        """Drop what was added since `begin`."""
        for split, (arrays, position) in self.before.items():
            del self.waiting[split][arrays:]
            self.files[split].go_back(position)
        self.held = sum(len(ids) for arrays in self.waiting.values() for ids in arrays)

    def flush(self) -> None:
        for split, arrays in self.waiting.items():
            if arrays:
                self.files[split].write(np.concatenate(arrays))
                arrays.clear()
        self.held = 0


class _PartFile:
    """A file that is written in pieces under another name, and has its own once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(staging_name(path.name))
        self.bytes = self.crc = 0
        with storage_errors(path):
            self.file = self.temporary.open("xb", buffering=0)

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).data if array.size else memoryview(b"")
        with storage_errors(self.path, self.bytes + len(data)):
            self.crc = zlib.crc32(data, self.crc)
            self.bytes += len(data)
            while data:
                data = data[self.file.write(data) :]

    @property
    def position(self) -> tuple[int, int]:
        """Size and CRC32 so far."""
        return self.bytes, self.crc

    def go_back(self, position: tuple[int, int]) -> None:
        """Drop what was written behind `position`."""
        if position != self.position:
            self.bytes, self.crc = position
            with storage_errors(self.path):
                self.file.truncate(self.bytes)
                self.file.seek(self.bytes)

    def close(self) -> tuple[int, int]:
        """Size and CRC32."""
        with storage_errors(self.path):
            self.file.close()
            os.replace(self.temporary, self.path)
        return self.position

    def abort(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)
