"""Documents out of text, JSON lines and parquet, and what is told of bad ones."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from nanogpt_dist.data.manifest import Errors
from nanogpt_dist.errors import BadDataError
from prepare.readers import documents
from prepare.readers.decompress import READ_BYTES, open_plain_bytes
from prepare.readers.documents import Part
from prepare.readers.formats import format_of
from prepare.readers.tables import row_groups
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


def test_compressed_lines_read_as_plain_ones(
    source: Path,
    documents: list[str],
    tmp_path: Path,
) -> None:
    plain = source.read_bytes()
    assert texts(source) == documents
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(
        compress(plain[:70_001]) + compress(b"") + compress(plain[70_001:])
    )
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert texts(tmp_path / name) == documents
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 5):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(BadDataError, match=f"{name} is damaged or cut off"):
                texts(tmp_path / name)


def test_what_zstd_long_31_has_compressed_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(b'{"text": "one"}\n{"text": "two"}\n') + compressor.flush()
    assert zstandard.get_frame_parameters(data).window_size == 1 << 31
    (tmp_path / "RC.jsonl.zst").write_bytes(data)
    assert texts(tmp_path / "RC.jsonl.zst") == ["one", "two"]


def test_what_is_packed_very_tightly_is_unpacked_in_little_memory_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(bytes(200 << 20)))
    with open_plain_bytes(tmp_path / "a.txt.zst", ".zst") as file:
        # as they were unpacked
        sizes = [len(data) for data in iter(lambda: file.read1(1 << 30), b"")]
    assert sum(sizes) == 200 << 20
    assert max(sizes) <= READ_BYTES << 15


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt.gz", b"plain text", r"a.txt.gz is not compressed: rename it without .gz"),
        ("a.jsonl.zst", b'{"text": "a"}', r"a.jsonl.zst is not compressed: rename it without .zst"),
        (
            "a.txt.gz",
            zstandard.compress(b"text"),
            r"a.txt.gz is a .zst file, whatever its name says",
        ),
        (
            "a.txt.zst",
            gzip.compress(b"text", mtime=0),
            r"a.txt.zst is a .gz file, whatever its name says",
        ),
        (
            "a.txt.gz",
            gzip.compress(b"text", mtime=0)[:-1],
            r"a.txt.gz is damaged or cut off .* get it again",
        ),
        (
            "a.txt.gz",
            gzip.compress(b"text", mtime=0) + b"more",
            r"a.txt.gz is damaged or cut off .* get it again",
        ),
    ],
)
def test_what_is_not_compressed_as_its_name_says_is_told(
    name: str,
    data: bytes,
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadDataError, match=message):
        texts(tmp_path / name)


def test_a_zstd_dictionary_is_asked_for(tmp_path: Path) -> None:
    made = zstandard.train_dictionary(
        1024, [b"hello world %d" % number * 9 for number in range(1000)]
    )
    (tmp_path / "a.txt.zst").write_bytes(
        zstandard.ZstdCompressor(dict_data=made).compress(b"hello world")
    )
    with pytest.raises(
        BadDataError,
        match="needs the dictionary that it was compressed with; unpack it: zstd -d -D",
    ):
        texts(tmp_path / "a.txt.zst")


def test_rows_of_parquet(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": range(3000), "body": documents}), path, row_group_size=700)
    assert texts(path, "body") == documents
    with pytest.raises(BadDataError, match="no text column text; it has: id, body"):
        texts(path)
    with pytest.raises(
        BadDataError, match=r"column id holds int64, not text; choose with --column of: body"
    ):
        texts(path, "id")
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(BadDataError, match=r"a.parquet: row 2: null in column text"):
        texts(path)
    invalid = pa.array([b"ok", b"ab\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": invalid}), path)
    with pytest.raises(BadDataError, match=r"a.parquet: row 2: byte 2 of column text is not UTF-8"):
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
        (b'{"text": null}', r":2: field text holds null, not text; give --errors skip"),
        (b'{"text": ["a"]}', r":2: field text holds a list, not text"),
        (b'["text"]', r":2: a list, not an object with a field text"),
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
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a\\ud83d\\ude42\\u2028"}\r\n\n{"text": ""}'
    )
    assert texts(tmp_path / "a.jsonl") == ["a🙂\u2028", ""]


ROWS = [
    {"text": "one\n[1, 2]"},
    {"id": 10**400, "text": 'tw"o}', "more": [{"text": "not me"}]},
    {"text": "東京🙂"},
]


@pytest.mark.parametrize("pack", ["", ".gz"])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    "written",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff"
        + json.dumps(ROWS, indent="\t", ensure_ascii=False).replace("\n", "\r\n")
        + "\r\n\n",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "".join(json.dumps([row]) for row in ROWS),
        "".join(f'{{ "id": 1,\n  "text": {json.dumps(row["text"])} }}\n\n' for row in ROWS),
        "\n\r\n".join(json.dumps(row) for row in ROWS) + "\r\n\r\n",
        "\ufeff" + "\n\ufeff".join(json.dumps(row) for row in ROWS),
    ],
)
def test_json_is_read_over_however_many_lines_it_is_written(
    written: str,
    chunk: int,
    pack: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prepare.readers.json_values.CHUNK_BYTES", chunk)
    path = tmp_path / f"a.json{pack}"
    path.write_bytes(gzip.compress(written.encode()) if pack else written.encode())
    assert texts(path) == [row["text"] for row in ROWS]
    size = path.stat().st_size
    if not pack:
        form = format_of(path.name)
        assert form is not None
        parts = [
            Part(path, form, start, min(start + 20, size), "text", "strict")
            for start in range(0, size, 20)
        ]
        assert [document.text for part in parts for document in part.documents()] == texts(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b'[{"text": "a"},\n {"text": "b"',
            r"a.json:2: not JSON \(.* in the value that begins here\); mend the file",
        ),
        (b'[{"text": "a"},\n {"text": "b"}\n', r"a.json:3: the array has no end: cut off\?"),
        (b'[\n{"text": "a"}]\n]', r"a.json:3: not JSON \(a \] without its \[\)"),
        (
            b'["a",\n"b"]',
            r"a.json:1: value 1: a string, not an object .* type: jq -c '.. | strings | {text: .}' FILE",  # noqa: E501
        ),
        (
            b'[{"text": "a"},\n{"text": null}]',
            r"a.json:2: value 2: field text holds null, not text",
        ),
        (b'[{"text": "a"},\n{"text": "\xe9"}]', r"a.json:2: value 2:10: byte 0xe9 is not UTF-8"),
        (
            b'{\n "data": [{"text": "a"}]}',
            r"a.json:1: value 1: no text .* type: jq -c '.data\[\]' FILE > NEW.jsonl",
        ),
        (b"[" * 100_000, r"a.json:1: the array has no end"),
        (b'[{"text": ' + b"[" * 100_000, r"a.json:1: not JSON \(too deep in the value"),
        (b"[NULL]", r"a.json:1: not JSON \(Expecting value in the value that begins here"),
        (
            "\ufeff{}".encode("utf-16"),
            r"a.json is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE",
        ),
    ],
)
def test_bad_values_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BadDataError, match=message):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_utf_16_is_told_by_name(encoding: str, errors: Errors, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "Some text, as PowerShell writes it with >.\r\n".encode(encoding)
    )
    with pytest.raises(
        BadDataError, match=r"a.txt is UTF-16.*, not UTF-8; convert it: iconv -f UTF-16"
    ):
        texts(tmp_path / "a.txt", errors=errors)


def test_a_byte_order_mark_before_any_line_is_no_text(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as `cat` puts them together
    parts = [b'\xef\xbb\xbf{"text": "%d"}\n' % number for number in range(9)]
    for name, data in (
        ("a.jsonl", b"".join(parts)),
        ("a.jsonl.gz", b"".join(map(gzip.compress, parts))),
    ):
        (tmp_path / name).write_bytes(data)
        assert texts(tmp_path / name) == list("012345678")
    monkeypatch.setattr(documents, "LONG_LINE_BYTES", 3)
    assert texts(tmp_path / "a.jsonl") == list("012345678")


def test_a_damaged_column_name_is_told(tmp_path: Path) -> None:
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("texts", pa.string())])) as stream:
        stream.write_table(pa.table({"texts": ["a"]}))
    (tmp_path / "a.arrow").write_bytes(
        (tmp_path / "a.arrow").read_bytes().replace(b"texts", b"text\xc5")
    )
    with pytest.raises(BadDataError, match=r"a.arrow is no arrow file, or damaged"):
        texts(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", ["list<string>", "struct", "int64", "bool"])
def test_a_column_that_is_no_text_says_what_it_holds(kind: str, tmp_path: Path) -> None:
    held = {"list<string>": [["a"]], "struct": [{"a": 1}], "int64": [1], "bool": [True]}[kind]
    parquet.write_table(pa.table({"text": held}), tmp_path / "a.parquet")
    with pytest.raises(
        BadDataError, match=rf"column text holds {kind.split('<')[0]}.*, not text; no column does"
    ):
        texts(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"text": held, "id": [1], "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(BadDataError, match=r"not text; choose with --column of: body$"):
        texts(tmp_path / "a.parquet")


def test_empty_documents_are_counted_and_left_out(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["", "x", " ", "", "\n", "y", "z", "<|endoftext|>"])
    manifest = build("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.5)
    assert manifest.counts.empty == 2
    assert sum(split.documents for split in manifest.splits.values()) == 6
    assert sum(split.tokens for split in manifest.splits.values()) == 5 + 13 + 6
