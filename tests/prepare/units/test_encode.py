"""One unit: ids, table and record are those of its documents, however they are buffered."""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data.manifest import Eot, Errors, SplitRuleRecord
from nanogpt_dist.errors import BadDataError, StorageError
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import Tokenizer, patterns, train_bpe
from prepare.readers import documents
from prepare.readers.documents import Document, Part
from prepare.readers.formats import Format
from prepare.units import encode
from prepare.units.encode import DOCUMENT, Job, UnitRecord, encode_unit, unit_path
from prepare.units.plan import Slice
from prepare.units.split import by_hash
from tests.conftest import write_jsonl

RULE = SplitRuleRecord(rule="documents", val_fraction=0.4, seed=1)
END = "<|endoftext|>"
TEXTS = ["one", "", f"two{END}", "drei é", f"{END}{END}", "vier" * 9, "", "five"]
TRAIN, VAL = 0, 1
BYTES = train_bpe(["a"], 257)  # an id for each byte, but by words
WHOLE, EMPTY, REPLACED, SKIPPED = range(4)


def lines(
    path: Path,
    texts: Sequence[str],
    eot: Eot | None = "append",
    errors: Errors = "strict",
    **limits: int,
) -> Job:
    """A unit of one file of lines."""
    size = write_jsonl(path, list(texts)).stat().st_size
    part = Part(path, Format("lines"), 0, size, "text", errors)
    job = Job(3, "a plan", ((Slice(0, 0, size, size), part),), RULE, eot, None, None)
    return replace(job, **limits)  # type: ignore[arg-type]


def text_job(path: Path, piece: Slice, errors: Errors = "strict", eot: Eot | None = None) -> Job:
    """A unit of one text."""
    part = Part(path, Format("text"), 0, path.stat().st_size, None, errors)
    return Job(3, "a plan", ((piece, part),), RULE, eot, None, None)


def encoded(
    job: Job,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    trace: Path | None = None,
) -> tuple[list[list[int]], list[Any]]:
    """The ids of both splits and the rows of the table; the record and the folder are right."""
    folder.mkdir()
    tokenizer = tokenizer or tokenizers.byte()
    record = encode_unit(job, tokenizer, folder, trace)
    data = {kind: unit_path(folder, 3, kind).read_bytes() for kind in ("train", "val", "documents")}
    assert sorted(path.name for path in folder.iterdir()) == [
        f"000003.{kind}" for kind in ("documents", "json", "train", "val")
    ]
    files = {kind: (len(found), zlib.crc32(found)) for kind, found in data.items()}
    assert record == UnitRecord(3, "a plan", **files, warning=tokenizer.warning)
    assert UnitRecord.parse(unit_path(folder, 3, "json").read_bytes()) == replace(
        record, warning=""
    )
    ids = [np.frombuffer(data[split], tokenizer.dtype).tolist() for split in ("train", "val")]
    return ids, np.frombuffer(data["documents"], DOCUMENT).tolist()


def expected(texts: Sequence[str], eot: Eot | None) -> tuple[list[list[int]], list[Any]]:
    """As `encoded`, by the definition."""
    ids: list[list[int]] = [[], []]
    rows = []
    for text in texts:
        utf8 = text.encode()
        split = VAL if by_hash([utf8], RULE) == "val" else TRAIN
        mine = list(utf8)
        if text and eot is not None:
            mine = [*mine, 256] if eot == "append" else [256, *mine]
        ids[split] += mine
        status = WHOLE if text else EMPTY
        rows.append((split, True, status, text.count(END), len(mine), len(utf8)))
    return ids, rows


@pytest.mark.parametrize("eot", ["append", "prepend", None])
@pytest.mark.parametrize("flush_ids", [1, 7, 40, 1 << 20])
def test_a_unit_is_its_documents(
    eot: Eot | None,
    flush_ids: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encode, "FLUSH_IDS", flush_ids)
    texts = [*TEXTS, *(f"document {number}" for number in range(20))]
    job = lines(tmp_path / "a.jsonl", texts, eot)
    assert encoded(job, tmp_path / "units") == expected(texts, eot)


@pytest.mark.parametrize("count", [4095, 4096, 4097, 9000])
def test_the_table_has_a_row_for_each_of_many_documents(count: int, tmp_path: Path) -> None:
    texts = [str(number) for number in range(count)]
    job = lines(tmp_path / "a.jsonl", texts)
    assert encoded(job, tmp_path / "units") == expected(texts, "append")


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({"max_documents": 1}, 1),
        ({"max_documents": 2}, 3),  # the second is empty, and does not count
        ({"max_documents": 6}, 8),
        ({"max_tokens": 4}, 1),
        ({"max_tokens": 5}, 3),
        ({"max_tokens": 10**6}, 8),
        ({"max_documents": 6, "max_tokens": 4}, 1),
        ({"max_documents": 1, "max_tokens": 10**6}, 1),
    ],
)
def test_it_ends_with_the_document_that_reaches_a_limit(
    limits: dict[str, int],
    count: int,
    tmp_path: Path,
) -> None:
    job = lines(tmp_path / "a.jsonl", TEXTS, **limits)
    assert encoded(job, tmp_path / "units") == expected(TEXTS[:count], "append")


@pytest.mark.parametrize("eot", ["append", "prepend"])
def test_part_of_a_text_has_an_end_only_where_the_text_has_one(eot: Eot, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    for begins in (True, False):
        for ends in (True, False):
            piece = Slice(0, 0, 9, 9, "val", begins, ends)
            ids, rows = encoded(text_job(path, piece, eot=eot), tmp_path / f"{begins}{ends}")
            front, behind = eot == "prepend" and begins, eot == "append" and ends
            assert ids == [[], [256] * front + list(b"some text") + [256] * behind]
            assert rows == [(VAL, ends, WHOLE, 0, 9 + front + behind, 9)]


def test_a_document_of_which_nothing_ends_here_does_not_count(tmp_path: Path) -> None:
    """Toward --max-documents, as neither its beginning nor its middle is a document."""
    path = tmp_path / "a.txt"
    path.write_text("some text")
    part = Part(path, Format("text"), 0, 9, None, "strict")
    slices = [Slice(0, 0, 9, 9, "train", ends=ends) for ends in (False, False, True, True)]
    job = Job(3, "a plan", tuple((piece, part) for piece in slices), RULE, None, 1, None)
    _, rows = encoded(job, tmp_path / "units")
    assert [row[1] for row in rows] == [False, False, True]


@pytest.mark.parametrize("piece_chars", [1, 5, 12, 13, 14, 100])
def test_end_of_text_is_counted_however_a_text_is_cut(
    piece_chars: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", piece_chars)
    text = f"{END}ab{END}{END}<|endoftext|{END}c<|endof{END}"
    job = lines(tmp_path / "a.jsonl", [text])
    _, [row] = encoded(job, tmp_path / "units", tokenizers.char(text))
    assert row[3] == 5


@pytest.mark.parametrize("long_text", [10, 1 << 20])
def test_what_is_not_utf8_is_noted(
    long_text: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "LONG_TEXT_BYTES", long_text)
    bad, good, source = tmp_path / "bad.txt", tmp_path / "good.txt", tmp_path / "lines.jsonl"
    bad.write_bytes(b"caf\xe9 and a long text")
    good.write_bytes("café and a long text".encode())
    source.write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    piece = Slice(0, 0, 21, 21, "train")
    part = Part(source, Format("lines"), 0, source.stat().st_size, "text", "replace")
    for name, job, statuses in (
        ("bad", text_job(bad, piece, "replace"), [REPLACED]),
        ("good", text_job(good, piece, "replace"), [WHOLE]),
        ("seen", text_job(good, replace(piece, replaced=True), "replace"), [REPLACED]),
        ("lines", Job(3, "a plan", ((piece, part),), RULE, None, None, None), [WHOLE, REPLACED]),
    ):
        _, rows = encoded(job, tmp_path / name)
        assert [row[2] for row in rows] == statuses


@pytest.mark.parametrize("flush_ids", [1, 20, 1 << 20])
def test_a_document_that_has_no_ids_leaves_none(
    flush_ids: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Skipped in the middle of it, when a part is in the file already."""
    monkeypatch.setattr(encode, "FLUSH_IDS", flush_ids)
    monkeypatch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", 4)
    chars = tokenizers.char("abcdefgh")
    good = ["abc", "defgh", "a" * 30, "bad", "h", "gg"]
    texts = [*good[:2], "abcd" * 5 + "?", *good[2:4], "?", "b" * 9 + "?", *good[4:]]
    skipping = lines(tmp_path / "bad.jsonl", texts, None, "skip")
    found = encoded(skipping, tmp_path / "bad", chars)
    ids, rows = encoded(lines(tmp_path / "good.jsonl", good, None), tmp_path / "good", chars)
    for place in (2, 5, 6):
        rows.insert(place, (TRAIN, True, SKIPPED, 0, 0, 0))
    assert found == (ids, rows)
    assert encoded(replace(skipping, max_documents=3), tmp_path / "three", chars)[1] == rows[:4]
    strict = lines(tmp_path / "bad.jsonl", texts, None)
    (tmp_path / "none").mkdir()
    with pytest.raises(BadDataError, match=r"bad\.jsonl:3: character '\?'.*--errors skip leaves"):
        encode_unit(strict, chars, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_a_long_text_that_has_no_ids_leaves_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encode, "FLUSH_IDS", 6)
    monkeypatch.setattr(documents, "LONG_TEXT_BYTES", 5)
    monkeypatch.setattr("prepare.readers.text.CHUNK_BYTES", 4)
    chars = tokenizers.char("abcdefgh")
    parts = []
    for name, text in enumerate(["abcdefgh", "abcdefgabcdefg?", "hgfedcba"]):
        path = tmp_path / f"{name}.txt"
        path.write_text(text)
        parts.append(
            (Slice(name, 0, 9, 9, "val"), Part(path, Format("text"), 0, len(text), None, "skip"))
        )
    job = Job(3, "a plan", tuple(parts), RULE, None, None, None)
    ids, rows = encoded(job, tmp_path / "units", chars)
    assert ids == [[], [*range(8), *reversed(range(8))]]
    assert [(row[2], row[4]) for row in rows] == [(WHOLE, 8), (SKIPPED, 0), (WHOLE, 8)]


@given(
    st.lists(
        st.lists(st.sampled_from(["🙂", "é 🙂 ", "a b ", "x" * 40]), max_size=5).map("".join),
        max_size=8,
    ),
    st.integers(1, 60),
    st.sampled_from(["append", "prepend"]),
)
def test_what_is_skipped_takes_no_other_document_with_it(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    flush_ids: int,
    eot: Eot,
) -> None:
    """However many ids a character has, and wherever the buffers are full."""
    folder = tmp_path_factory.mktemp("skipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "MAX_UNBROKEN", 30)
        patch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", 3)
        whole = encoded(lines(folder / "a.jsonl", texts, eot, "skip"), folder / "whole", BYTES)
        patch.setattr(encode, "FLUSH_IDS", flush_ids)
        assert (
            encoded(lines(folder / "a.jsonl", texts, eot, "skip"), folder / "units", BYTES) == whole
        )


class WatchedPart(Part):
    """Looks before each document how many ids are in the file of the train split."""

    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            [path] = (self.path.parent / "units").glob(".tmp-000003.train*")
            LOOKS.append(path.stat().st_size // 2)
            yield document


LOOKS: list[int] = []


def test_fewer_ids_are_held_than_are_written_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the memory of a worker would grow with its unit."""
    monkeypatch.setattr(encode, "FLUSH_IDS", 20)
    LOOKS.clear()
    texts = ["abcd", "a" * 9, "", "abc" * 10, *["a"] * 40]
    job = lines(tmp_path / "a.jsonl", texts, None)
    [(piece, part)] = job.slices
    watched = WatchedPart(**vars(part))
    ids, rows = encoded(
        replace(job, slices=((replace(piece, split="train"), watched),)), tmp_path / "units"
    )
    before = [sum(len(text) for text in texts[:n]) for n in range(len(texts))]
    assert all(0 <= made - held < 20 for made, held in zip(before, LOOKS, strict=True))
    assert len(set(LOOKS)) < 8, "not each document is written by itself"
    assert len(ids[TRAIN]) == sum(row[4] for row in rows) == sum(map(len, texts))


@pytest.mark.parametrize("long_text", [10, 1 << 20])
def test_a_long_text_goes_where_a_short_one_goes(
    long_text: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "LONG_TEXT_BYTES", long_text)
    monkeypatch.setattr("prepare.readers.text.CHUNK_BYTES", 7)
    for number in range(8):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"text number {number} é")
        size = path.stat().st_size
        _, [row] = encoded(text_job(path, Slice(0, 0, size, size)), tmp_path / f"units {number}")
        assert row[0] == (VAL if by_hash([path.read_bytes()], RULE) == "val" else TRAIN)


def test_a_long_text_that_has_become_bad_is_named_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its split is known, so that it is read here for the first time since the plan."""
    monkeypatch.setattr(documents, "LONG_TEXT_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(b"some text\ncaf\xe9 and more")
    (tmp_path / "units").mkdir()
    job = text_job(path, Slice(0, 0, 23, 23, "train"))
    with pytest.raises(BadDataError) as caught:
        encode_unit(job, tokenizers.byte(), tmp_path / "units")
    assert str(caught.value).startswith(f"{shown(path)}:2:3: byte 0xe9 is not UTF-8;")
    assert not list((tmp_path / "units").iterdir())


def test_the_trace_names_the_document_at_hand(tmp_path: Path) -> None:
    """In as many bytes each time, so that a short name behind a long one is whole."""
    trace = tmp_path / "trace"
    descriptors = os.listdir("/proc/self/fd")
    encoded(lines(tmp_path / "a.jsonl", ["a", "b", "c"]), tmp_path / "units", trace=trace)
    assert trace.read_text().rstrip() == f"{shown(tmp_path / 'a.jsonl')}:3"
    trace.write_text("x" * 256)
    encoded(lines(tmp_path / "b.jsonl", ["a"]), tmp_path / "again", trace=trace)
    assert trace.read_text().rstrip() == f"{shown(tmp_path / 'b.jsonl')}:1"
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert trace.stat().st_mode & 0o777 == (tmp_path / "b.jsonl").stat().st_mode & 0o777


def test_no_id_of_one_unit_is_taken_for_anothers(tmp_path: Path) -> None:
    """A record is whole and of numbers, or it is none."""
    good = {"unit": 3, "plan": "p", "train": [8, 1], "val": [0, 0], "documents": [54, 2]}
    assert UnitRecord.parse(json.dumps(good).encode()) == UnitRecord(
        3, "p", (8, 1), (0, 0), (54, 2)
    )
    assert json.loads(UnitRecord(3, "p", (8, 1), (0, 0), (54, 2), "odd").to_json()) == good
    for name, value in (
        ("unit", "3"),
        ("unit", True),
        ("train", [8.0, 1]),
        ("val", [0, None]),
        ("documents", [54]),
        ("documents", None),
    ):
        with pytest.raises((ValueError, TypeError, KeyError)):
            UnitRecord.parse(json.dumps({**good, name: value}).encode())


def test_a_folder_that_is_gone_is_an_error_of_storage(tmp_path: Path) -> None:
    job = lines(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(StorageError, match=r"000003\.train: No such file or directory"):
        encode_unit(job, tokenizers.byte(), tmp_path / "nowhere")
    (tmp_path / "units" / "000003.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"000003\.json: Is a directory"):
        encode_unit(job, tokenizers.byte(), tmp_path / "units")
