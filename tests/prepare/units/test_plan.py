"""The cut into units does not show: not in documents, not in ids, not in counts."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import regex
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError, UsageError
from nanogpt_dist.tokenizer.patterns import KNOWN
from prepare.readers import documents
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.readers.text import _BORDER
from prepare.units.split import shuffled_val_rows
from tests.conftest import build, hashes, write_jsonl

WORDS = [
    "the ",
    "café ",
    "x = 1\n",
    "<|endoftext|>",
    "東京",
    "  ",
    "12345 ",
    "don't ",
    "\n\n\n",
    "a" * 50,
]
WORDS += ["、", "大。\n", "мир ", "’ ", "\u3000 "]


def some_text(seed: int, words: int) -> str:
    rng = np.random.default_rng(seed)
    return "".join(WORDS[i] for i in rng.integers(0, len(WORDS), words))


def sources(folder: Path, kind: str) -> list[Path]:
    texts = [some_text(seed, 1 + seed % 97) for seed in range(100)]
    if kind == "lines":
        return [write_jsonl(folder / "a.jsonl", texts)]
    if kind == "parquet":
        parquet.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=9)
        return [folder / "a.parquet"]
    if kind == "arrow":
        table = pa.table({"text": texts})
        with pa.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
            stream.write_table(table, max_chunksize=11)
        with pa.ipc.new_file(folder / "b.arrow", table.schema) as file:
            file.write_table(pa.table({"text": [text + "!" for text in texts]}), max_chunksize=13)
        return [folder / "a.arrow", folder / "b.arrow"]
    if kind == "one text":
        (folder / "a.txt").write_text("\ufeff" + some_text(1, 5000), encoding="utf-8")
        return [folder / "a.txt"]
    (folder / "texts").mkdir()
    for number, text in enumerate(texts[:30]):
        if number % 3:
            (folder / "texts" / f"{number}.md").write_text(text * 3, encoding="utf-8")
        else:
            (folder / "texts" / f"{number}.txt.gz").write_bytes(
                gzip.compress((text * 20).encode(), mtime=0)
            )
    return [folder / "texts"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte"])
@pytest.mark.parametrize("kind", ["lines", "parquet", "arrow", "one text", "texts"])
@pytest.mark.parametrize("eot", ["append", "prepend"])
def test_units_do_not_show(kind: str, tokenizer: str, eot: str, tmp_path: Path) -> None:
    given = sources(tmp_path, kind)
    options = {"tokenizer": tokenizer, "eot": eot, "workers": 1, "val_fraction": 0.3, "seed": 5}
    build("text", tmp_path / "whole", given, **options)
    for units_ in ("small units", "tiny units"):
        with pytest.MonkeyPatch.context() as patch:
            tiny = units_ == "tiny units"
            patch.setattr("prepare.units.plan.UNIT_BYTES", (100, 100) if tiny else (3000, 3000))
            patch.setattr(documents, "LONG_TEXT_BYTES", 50 if tiny else 2000)
            patch.setattr(documents, "LONG_LINE_BYTES", 70 if tiny else 2000)
            patch.setattr("prepare.readers.text.CHUNK_BYTES", 7 if tiny else 500)
            patch.setattr("prepare.readers.json_field.CHUNK_BYTES", 5 if tiny else 300)
            build("text", tmp_path / units_, given, **options)
        assert hashes(tmp_path / units_) == hashes(tmp_path / "whole")


@given(
    st.lists(
        st.sampled_from(
            [*WORDS, "ä", "字", "。", "，", " ", "é ", "\x85", "\u2028", "'s", "/", "\ue000", "7"]
        )
    ).map("".join)
)
@settings(max_examples=300)
def test_a_long_text_is_cut_into_slices_between_pre_tokens_of_every_pattern(text: str) -> None:
    data = text.encode()
    cuts = [0, *(found.end() for found in _BORDER.finditer(data)), len(data)]
    pieces = [data[start:stop].decode() for start, stop in pairwise(cuts)]
    for known in KNOWN:
        pattern = regex.compile(known)
        assert [word for piece in pieces for word in pattern.findall(piece)] == pattern.findall(
            text
        )


def test_end_of_text_stands_where_it_is_asked_for(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["one", "", "two", "three", "four", "five"])
    for eot in ("append", "prepend"):
        build("text", tmp_path / eot, [source], tokenizer="byte", eot=eot, val_fraction=0.4)
        data = DataFolder.open(tmp_path / eot)
        assert data.manifest.eot == eot
        for split in data.splits.values():
            ids = split.read(0, split.tokens)
            starts = [0, *split.document_ends()[:-1]]
            ends = split.document_ends()
            assert [ids[start] for start in starts] == [256] * len(starts) or eot == "append"
            assert [ids[end - 1] for end in ends] == [256] * len(ends) or eot == "prepend"
            assert (ids == 256).sum() == split.documents


@given(
    st.lists(st.binary(max_size=30), max_size=20),
    st.lists(st.integers(0, 400), max_size=5),
    st.booleans(),
)
@settings(max_examples=150)
def test_lines_may_be_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    cuts: list[int],
    end: bool,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts = [line.decode("latin-1") for line in lines]
    path.write_text(("\n".join(f'{{"text": {json.dumps(text)}}}' for text in texts)) + "\n" * end)
    size = path.stat().st_size
    borders = sorted({0, size, *(cut % (size + 1) for cut in cuts)})
    found = []
    for start, stop in pairwise(borders):
        found += [
            d.text for d in Part(path, Format("lines"), start, stop, "text", "strict").documents()
        ]
    assert found == (texts if size else [])


LONG = st.text(
    st.sampled_from(
        'ab"\\/\n\té東🙂\ud800\udc00'.encode("utf-16", "surrogatepass").decode("utf-16") + "x"
    ),
    max_size=60,
)


@given(
    st.dictionaries(
        st.sampled_from(["text", "id", 'a"b', "x"]),
        LONG | st.integers() | st.lists(LONG),
        min_size=1,
    ),
    st.booleans(),
)
@settings(max_examples=200)
def test_a_long_line_reads_as_json_does(
    tmp_path_factory: pytest.TempPathFactory,
    row: dict[str, object],
    ascii_: bool,
) -> None:
    row["text"] = str(row.get("text", "")) * 2
    path = tmp_path_factory.mktemp("long") / "a.jsonl"
    line = json.dumps(row, ensure_ascii=ascii_)
    path.write_text(f'{{"text": "before"}}\n{line}\n{{"text": "behind"}}', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "LONG_LINE_BYTES", 25)
        patch.setattr("prepare.readers.json_field.CHUNK_BYTES", 3)
        part = Part(path, Format("lines"), 0, path.stat().st_size, "text", "strict")
        assert ["".join(d.text) for d in part.documents()] == ["before", row["text"], "behind"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 1}', "no text in field text"),
        (b'{"text": 1}', "no text in field text"),
        (b'5, "text"', "not JSON"),
        (b'{"text": "a', "a string without an end"),
        (b'{"text": "a" "b": 1}', "not JSON"),
        (b'{"x": [1, {"y": "]"}, "text": "a"}', "not JSON"),
        (b'{"x": [1, "text"', "a value without an end"),
        (b'{"text": "\xe9"}', "byte 0xe9 is not UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "\\q"}', "not JSON"),
    ],
)
def test_bad_long_lines_are_named(
    line: bytes,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "LONG_LINE_BYTES", 3)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    strict = Part(path, Format("lines"), 0, path.stat().st_size, "text", "strict").documents()
    with pytest.raises(BadDataError, match=rf"a\.jsonl:2: .*{message}"):
        ["".join(document.text) for document in strict]
    replaced = Part(path, Format("lines"), 0, path.stat().st_size, "text", "skip").documents()
    if "UTF-8" in message or "surrogate" in message:
        assert [document.skipped for document in replaced] == [True]


@pytest.mark.parametrize("rows", [1, 10, 2000, 8_013_769])
def test_rows_are_drawn_as_datasets_draws_them(rows: int) -> None:
    from nanogpt_dist.data.manifest import SplitRuleRecord

    drawn = shuffled_val_rows(
        rows, SplitRuleRecord(rule="shuffled", val_fraction=0.0005, seed=2357)
    )
    if rows == 8_013_769:
        assert len(drawn) == 4007
    if 1 < rows < 10_000:
        oracle = Dataset.from_dict({"row": range(rows)}).train_test_split(
            test_size=0.0005, seed=2357, shuffle=True
        )
        assert drawn.tolist() == sorted(oracle["test"]["row"])


def test_rows_can_be_drawn_of_tables_only(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    with pytest.raises(UsageError, match="give --split-by documents"):
        build("text", tmp_path / "out", [source], tokenizer="byte", split_by="shuffled")
