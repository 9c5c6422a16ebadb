"""Documents out of text, JSON lines and parquet, and what is told of bad ones."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from nanogpt_dist.errors import (
    BadDataError,
)
from nanogpt_dist.shards.manifest import Errors
from prepare.documents import Part
from prepare.formats import format_of
from prepare.tables import row_groups
from tests.conftest import build, write_jsonl


def whole(path: Path, column: str = "text", errors: Errors = "strict") -> Part:
    """All of a file."""
    form = format_of(path.name)
    assert form is not None
    in_groups = form.kind in ("parquet", "arrow")
    stop = len(row_groups(path, form.kind, column)) if in_groups else path.stat().st_size
    return Part(path, form, 0, stop, column, errors)


def texts(path: Path, column: str = "text", errors: Errors = "strict") -> list[str]:
    return ["".join(document.text) for document in whole(path, column, errors).documents()]


def test_compressed_lines_read_as_plain_ones(source: Path, documents: list[str], tmp_path: Path) -> None:
    plain = source.read_bytes()
    assert texts(source) == documents
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(plain[:70_001]) + compress(b"") + compress(plain[70_001:]))
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert texts(tmp_path / name) == documents
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 5):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(BadDataError, match=f"{name} is damaged or cut off"):
                texts(tmp_path / name)


def test_rows_of_parquet(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": range(3000), "body": documents}), path, row_group_size=700)
    assert texts(path, "body") == documents
    for column in ("text", "id"):
        with pytest.raises(BadDataError, match=rf"no text column {column}; it has: id, body"):
            texts(path, column)
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(BadDataError, match=r"a.parquet: row 2 from 0: null in column text"):
        texts(path)
    invalid = pa.array([b"ok", b"ab\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": invalid}), path)
    with pytest.raises(BadDataError, match=r"a.parquet: row 2 from 0: byte 2 of column text is not UTF-8"):
        texts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadDataError, match="no parquet file, or damaged"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a.jsonl:2: not JSON \(column 2"),
        (b"[" * 100_000, r":2: not JSON"),
        (b'{"text": "caf\xe9"}', r":2:13: byte 0xe9 is not UTF-8"),
        (b'{"text": "a\\ud800"}', r":2: character 1 is U\+D800"),
        (b'{"body": "x"}', r":2: no text in field text; it has: body; choose one with --column"),
        (b'{"text": null}', r":2: no text in field text"),
        (b'["text"]', r":2: no text in field text; it has: list"),
    ],
)
def test_bad_lines_are_named(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(BadDataError, match=message):
        texts(tmp_path / "a.jsonl")


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    words = pa.array(["one", "two", "one"])
    parquet.write_table(pa.table({"text": words.dictionary_encode()}), path)
    assert texts(path) == ["one", "two", "one"]
    parquet.write_table(pa.Table.from_arrays([words, words], ["text", "text"]), path)
    with pytest.raises(BadDataError, match="no text column text"):
        texts(path)
    parquet.write_table(pa.table({"text": pa.array(["some text"] * 1000)}), path)
    data = bytearray(path.read_bytes())
    data[20:40] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(BadDataError, match="no parquet file, or damaged"):
        texts(path)


def test_a_byte_order_mark_counts_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xff")
    with pytest.raises(BadDataError, match=r"a\.txt:1:4: byte 0xff"):
        texts(tmp_path / "a.txt")


def test_what_is_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\xef\xbb\xbf")
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo\0\ufeff"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\ud83d\\ude42\\u2028"}\r\n\n{"text": ""}')
    assert texts(tmp_path / "a.jsonl") == ["a🙂\u2028", ""]


def test_empty_documents_are_counted_and_left_out(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["", "x", " ", "", "\n", "y", "z", "<|endoftext|>"])
    manifest = build("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.5)
    assert manifest.counts.empty == 2
    assert sum(split.documents for split in manifest.splits.values()) == 6
    assert sum(split.tokens for split in manifest.splits.values()) == 5 + 13 + 6
