"""`--errors skip` leaves out whatever a document can be, and nothing else: the ids are those
without it.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from nanogpt_dist.data.manifest import Manifest
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import patterns
from prepare.readers import documents
from prepare.units import encode
from tests.conftest import build

GOOD = [f"document {number} of several, " * 3 for number in range(60)]
BAD_LINES = [
    b'{"text": "caf\xe9"}',
    b'{"text": null}',
    b'{"text": 5}',
    b'{"text": true, "id": 1}',
    b'{"text": ["a", "b"]}',
    b'{"text": {"en": "a"}}',
    b'{"body": "x"}',
    b'["text"]',
    b'"text"',
    b"null",
    b'{"text": "torn',
    b"}",
    b"text, and no JSON",
    b"[" * 5000,
    b'{"text": "half \\ud800 a pair"}',
    b'{"text": "' + b"x" * 900 + b'"}',  # longer than LONG_LINE_BYTES, and no border
    b'{"text": 7, "more": "' + b"x" * 900 + b'"}',
    b'{"text": "' + b"x" * 900,
]
Pack = Callable[[bytes], bytes]
PACKED: dict[str, Pack] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_UNBROKEN", 500)
    monkeypatch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", 200)
    monkeypatch.setattr(documents, "LONG_LINE_BYTES", 400)
    monkeypatch.setattr(documents, "LONG_TEXT_BYTES", 400)
    monkeypatch.setattr(encode, "FLUSH_IDS", 150)
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (1500, 1500))


def lines_of(texts: list[str]) -> list[bytes]:
    return [json.dumps({"text": text}).encode() for text in texts]


def prepared(out: Path, source: Path, **options: str) -> tuple[Manifest, dict[str, bytes]]:
    manifest = build(
        "text", out, [source], tokenizer="gpt2", val_fraction=0.3, workers=1, **options
    )
    return manifest, {path.name: path.read_bytes() for path in out.glob("*.bin")}


@pytest.mark.parametrize("pack", PACKED)
def test_lines_that_hold_no_text_are_left_out(pack: str, tmp_path: Path) -> None:
    good, bad = tmp_path / f"good.jsonl{pack}", tmp_path / f"bad.jsonl{pack}"
    lines = lines_of(GOOD)
    good.write_bytes(PACKED[pack](b"\n".join(lines)))
    for number, line in enumerate(BAD_LINES):
        lines.insert(2 + 3 * number, line)
    bad.write_bytes(PACKED[pack](b"\n".join(lines)))
    _, expected = prepared(tmp_path / "good", good)
    manifest, found = prepared(tmp_path / "bad", bad, errors="skip")
    assert found == expected
    assert manifest.counts.skipped == len(BAD_LINES)
    with pytest.raises(BadDataError, match=rf"bad.jsonl{pack}:3:13: byte 0xe9 is not UTF-8"):
        prepared(tmp_path / "strict", bad)


def test_values_of_an_array_that_hold_no_text_are_left_out(tmp_path: Path) -> None:
    whole = [
        line for line in BAD_LINES if line[:1] + line[-1:] in (b"{}", b'""') or line == b"null"
    ]
    for name, lines in (
        ("good", lines_of(GOOD)),
        ("bad", [*lines_of(GOOD[:9]), *whole, *lines_of(GOOD[9:])]),
    ):
        (tmp_path / f"{name}.json").write_bytes(b"[\n" + b",\n ".join(lines) + b"\n]\n")
    _, expected = prepared(tmp_path / "good", tmp_path / "good.json")
    manifest, found = prepared(tmp_path / "bad", tmp_path / "bad.json", errors="skip")
    assert found == expected
    assert manifest.counts.skipped == len(whole)


def test_rows_that_hold_no_text_are_left_out(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        rows: list[bytes | None] = [text.encode() for text in GOOD]
        parquet.write_table(
            pa.table({"text": pa.array(rows, kind)}), tmp_path / "good.parquet", row_group_size=7
        )
        rows[5:5] = [None, b"caf\xe9", b"x" * 900, None]
        parquet.write_table(
            pa.table({"text": pa.array(rows, kind)}), tmp_path / "bad.parquet", row_group_size=7
        )
        _, expected = prepared(tmp_path / f"good {kind}", tmp_path / "good.parquet")
        manifest, found = prepared(
            tmp_path / f"bad {kind}", tmp_path / "bad.parquet", errors="skip"
        )
        assert found == expected
        assert manifest.counts.skipped == 4
        with pytest.raises(BadDataError, match=r"bad.parquet: row 6: null in column text"):
            prepared(tmp_path / f"strict {kind}", tmp_path / "bad.parquet")


@pytest.mark.parametrize("pack", PACKED)
def test_texts_that_are_no_text_are_left_out(pack: str, tmp_path: Path) -> None:
    for folder in ("good", "bad"):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(GOOD):
            (tmp_path / folder / f"{number:03d}.txt{pack}").write_bytes(
                PACKED[pack](text.encode() * (1 + number % 9))
            )
    bad = [
        b"line\n" * 300 + b"caf\xe9",
        b"words and words " * 200 + b"x" * 900 + b" and words" * 200,
    ]
    bad += ["in UTF-16, as PowerShell writes".encode("utf-16")] * 2
    for number, data in enumerate(bad):
        (tmp_path / "bad" / f"010-{number}.txt{pack}").write_bytes(PACKED[pack](data))
    _, expected = prepared(tmp_path / "out good", tmp_path / "good")
    manifest, found = prepared(tmp_path / "out bad", tmp_path / "bad", errors="skip")
    assert found == expected
    assert manifest.counts.skipped == 4
    with pytest.raises(BadDataError, match=rf"010-0.txt{pack}:301:3: byte 0xe9 is not UTF-8"):
        prepared(tmp_path / "strict", tmp_path / "bad")
    (tmp_path / "bad" / f"010-0.txt{pack}").unlink()
    with pytest.raises(
        BadDataError,
        match=rf"010-1.txt{pack}: .* characters in which no word ends.*; --errors skip leaves it out",  # noqa: E501
    ):
        prepared(tmp_path / "strict, too", tmp_path / "bad")


def test_characters_that_a_vocabulary_has_not_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(lines_of(GOOD)))
    build("text", tmp_path / "chars", [tmp_path / "good.jsonl"], tokenizer="char", val_fraction=0.3)
    (tmp_path / "bad.jsonl").write_bytes(
        b"\n".join(lines_of([*GOOD[:7], GOOD[0] * 5 + "Ж", *GOOD[7:]]))
    )
    options = {
        "tokenizer": str(tmp_path / "chars" / "tokenizer.json"),
        "val_fraction": 0.3,
        "workers": 1,
    }
    manifest = build("text", tmp_path / "bad", [tmp_path / "bad.jsonl"], errors="skip", **options)
    assert manifest.counts.skipped == 1
    for path in (tmp_path / "chars").glob("*.bin"):
        assert (tmp_path / "bad" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(BadDataError, match=r"bad.jsonl:8: character 'Ж'"):
        build("text", tmp_path / "strict", [tmp_path / "bad.jsonl"], **options)


def test_characters_of_nothing_are_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    with pytest.raises(BadDataError, match="no text in the sources to take characters from"):
        build("text", tmp_path / "out", [tmp_path / "a.jsonl"], tokenizer="char", errors="skip")


def test_where_all_is_skipped_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines_of(GOOD)))
    with pytest.raises(
        BadDataError,
        match=r"every document was skipped \(60\); --errors strict tells what is in the first",
    ):
        prepared(tmp_path / "out", tmp_path / "a.jsonl", errors="skip", column="body")
