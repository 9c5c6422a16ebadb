"""The cut into units does not show: not in documents, not in ids, not in counts."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.manifest import SourceRecord, SplitRuleRecord
from nanogpt_dist.errors import BadDataError, UsageError
from nanogpt_dist.tokenizer.patterns import KNOWN
from prepare.corpora import find
from prepare.options import PrepareConfig
from prepare.readers import documents
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.readers.tables import row_groups
from prepare.readers.text import _BORDER
from prepare.recipe import Recipe, make_ingredient, make_recipe
from prepare.sources.files import LocalFiles, SourceFiles
from prepare.sources.local import Source
from prepare.units import plan as plans
from prepare.units.plan import Slice, Unit, parts_of, plan, plan_key
from prepare.units.split import by_hash, shuffled_val_rows
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


def recipe_of(*parts: dict[str, int], **options: Any) -> tuple[Recipe, list[SourceFiles]]:
    """For files of so many bytes, by their paths; several parts: a mix."""
    config = PrepareConfig(corpus="text", **{"tokenizer": "byte", "val_fraction": 0.4, **options})
    ingredients, files = [], []
    for sizes in parts:
        found = [
            SourceRecord(name=Path(path).name, bytes=size, sha256="0" * 64)
            for path, size in sizes.items()
        ]
        weight = 1 / len(parts) if len(parts) > 1 else None
        ingredients.append(make_ingredient(find("text"), found, None, config, weight))
        files.append(LocalFiles(tuple(Source(Path(path).name, Path(path)) for path in sizes)))
    return make_recipe(ingredients, config), list(files)


def planned(*parts: dict[str, int], cuttable: bool = True, **options: Any) -> list[Unit]:
    return plan(*recipe_of(*parts, **options), cuttable)


def on_disk(*paths: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in paths}


MIB = 1 << 20


@pytest.mark.parametrize(
    ("total", "units", "size"),
    [
        (1, 1, 1),
        (MIB, 1, MIB),
        (MIB + 1, 2, MIB),
        (64 * MIB, 64, MIB),
        (640 * MIB, 64, 10 * MIB),
        (64 * 64 * MIB, 64, 64 * MIB),
        (100 * 64 * MIB, 100, 64 * MIB),
        (100 * 64 * MIB + 1, 101, 64 * MIB),
    ],
)
def test_there_are_enough_units_and_none_is_large(total: int, units: int, size: int) -> None:
    found = planned({"a.jsonl": total})
    assert len(found) == units
    assert [unit.bytes for unit in found[:-1]] == [size] * (units - 1)
    assert sum(unit.bytes for unit in found) == total


def test_units_that_were_done_stay_good() -> None:
    """Another cut needs another version: the units of an unfinished folder are of the old one."""
    assert plan_key() == {"plan": 3, "unit_bytes": [1_048_576, 67_108_864], "units": 64}


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(5, 60),
)
def test_each_file_is_in_one_unit_and_a_unit_is_full(sizes: list[list[int]], most: int) -> None:
    """In order; another file would not have fit."""
    parts = [{f"{n}.md": size for n, size in enumerate(each)} for each in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "UNIT_BYTES", (most, most))
        units = planned(*parts, cuttable=False)
    assert [unit.index for unit in units] == list(range(len(units)))
    found = [
        (unit.ingredient, piece.file, piece.start, piece.stop, piece.size)
        for unit in units
        for piece in unit.slices
    ]
    assert found == [
        (part, file, 0, size, size)
        for part, each in enumerate(sizes)
        for file, size in enumerate(each)
    ]
    for unit, following in pairwise(units):
        assert unit.files == [piece.file for piece in unit.slices]
        assert unit.bytes <= most or len(unit.slices) == 1
        if unit.ingredient == following.ingredient:
            assert unit.bytes + following.slices[0].size > most


def test_lines_are_cut_anywhere_unless_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", (10, 10))
    for name, expected in (
        ("a.jsonl", [(0, 10, 10), (10, 20, 10), (20, 25, 5)]),
        ("a.jsonl.gz", [(0, 25, 25)]),
        ("a.md.gz", [(0, 25, 25)]),
    ):
        units = planned({name: 25})
        assert [(p.start, p.stop, p.size) for unit in units for p in unit.slices] == expected
        assert all(p == Slice(0, p.start, p.stop, p.size) for unit in units for p in unit.slices)


def test_row_groups_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into a unit, or one that does not; the drawn rows are those of datasets."""
    schema = pa.schema([("text", pa.string())])
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, lengths in zip(paths, ([3, 3, 40, 1, 2, 5], [4, 4, 4]), strict=True):
        with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
            for rows in lengths:
                file.write_table(pa.table({"text": ["x" * 50] * rows}, schema))
    groups = [row_groups(path, "parquet", "text") for path in paths]
    most = groups[0][0].bytes + groups[0][1].bytes  # so that two fit to the byte
    monkeypatch.setattr(plans, "UNIT_BYTES", (most, most))
    for options, drawn_of in (({}, 66), ({"max_documents": 30}, 30), ({"max_documents": 99}, 66)):
        recipe, files = recipe_of(on_disk(*paths), split_by="shuffled", **options)
        pieces = [piece for unit in plan(recipe, files, True) for piece in unit.slices]
        assert [(p.file, p.start, p.stop, p.rows) for p in pieces][:3] == [
            (0, 0, 2, 6),
            (0, 2, 3, 40),
            (0, 3, 5, 3) if groups[0][5].bytes + groups[0][4].bytes > most else (0, 3, 6, 8),
        ]
        drawn, first = [], 0
        for p in pieces:
            mine = groups[p.file][p.start : p.stop]
            assert (p.size, p.rows) == (sum(g.bytes for g in mine), sum(g.rows for g in mine))
            assert p.size <= most or len(mine) == 1
            if p.stop < len(groups[p.file]):
                assert p.size + groups[p.file][p.stop].bytes > most
            assert p.val_rows is not None
            assert p.val_rows <= set(range(p.rows))
            drawn += [first + row for row in sorted(p.val_rows)]
            first += p.rows
        for file in (0, 1):
            borders = [0, *(p.stop for p in pieces if p.file == file)]
            assert borders[-1] == len(groups[file])
            assert [p.start for p in pieces if p.file == file] == borders[:-1]
        rule = SplitRuleRecord(rule="shuffled", val_fraction=0.4, seed=2357)
        assert drawn == shuffled_val_rows(drawn_of, rule).tolist()


def test_a_drawn_split_of_a_table_beside_lines_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    lines = write_jsonl(tmp_path / "b.jsonl", ["one", "two"])
    with pytest.raises(UsageError, match="give --split-by documents"):
        planned(on_disk(tmp_path / "a.parquet", lines), split_by="shuffled")


def test_more_rows_than_a_split_is_drawn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged footer may claim any number: it is no size of an array."""
    parquet.write_table(pa.table({"text": list("abcd")}), tmp_path / "a.parquet")
    monkeypatch.setattr(plans, "MOST_DRAWN", 4)
    assert planned(on_disk(tmp_path / "a.parquet"), split_by="shuffled")
    monkeypatch.setattr(plans, "MOST_DRAWN", 3)
    assert planned(on_disk(tmp_path / "a.parquet"), split_by="shuffled", max_documents=3)
    with pytest.raises(UsageError, match=r"^4 rows are too many .* --split-by documents$"):
        planned(on_disk(tmp_path / "a.parquet"), split_by="shuffled")


WORDY = "".join(f"wörd {n} 東京 " for n in range(60))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("most", [50, 300, 10_000])
@pytest.mark.parametrize("rule", ["documents", "characters"])
def test_one_text_is_cut_into_slices_that_make_it_up(
    mark: str,
    most: int,
    rule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", (most, most))
    path = tmp_path / "a.txt"
    path.write_text(mark + WORDY, encoding="utf-8")
    data = path.read_bytes()
    pieces = [p for unit in planned(on_disk(path), split_by=rule) for p in unit.slices]
    assert b"".join(data[p.start : p.stop] for p in pieces) == data
    assert [p.size for p in pieces] == [p.stop - p.start for p in pieces]
    assert all(p.size < most + 30 for p in pieces)
    assert len(pieces) >= len(data) // (most + 30)
    assert not any(p.replaced for p in pieces)
    if rule == "characters":
        for split, text in (
            ("train", WORDY[: int(len(WORDY) * 0.6)]),
            ("val", WORDY[int(len(WORDY) * 0.6) :]),
        ):
            mine = [p for p in pieces if p.split == split]
            assert data[mine[0].start : mine[-1].stop].decode().removeprefix(mark or "-") == text
            assert [p.begins for p in mine] == [p is mine[0] for p in mine]
            assert [p.ends for p in mine] == [p is mine[-1] for p in mine]
    elif len(data) > most:
        split = by_hash([WORDY.encode()], SplitRuleRecord(rule=rule, val_fraction=0.4, seed=2357))
        assert {p.split for p in pieces} == {split}
        assert [p.begins for p in pieces] == [p is pieces[0] for p in pieces]
        assert [p.ends for p in pieces] == [p is pieces[-1] for p in pieces]
    else:
        assert pieces == [Slice(0, 0, len(data), len(data))]


def test_a_text_that_must_stay_whole_is_one_slice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", (50, 50))
    path = tmp_path / "a.txt"
    path.write_text(WORDY, encoding="utf-8")
    size = path.stat().st_size
    whole: list[dict[str, Any]] = [
        {"cuttable": False},
        {"errors": "skip"},
        {"max_tokens": 5},
        {"max_documents": 5},
    ]
    for options in whole:
        [unit] = planned(on_disk(path), split_by="documents", **options)
        assert unit.slices == (Slice(0, 0, size, size),)
    [train, val] = planned(on_disk(path), cuttable=False)
    assert [piece.split for unit in (train, val) for piece in unit.slices] == ["train", "val"]
    (tmp_path / "b.txt").write_text("x " * 25)  # which is just one unit
    [unit] = planned(on_disk(tmp_path / "b.txt"), split_by="documents")
    assert unit.slices == (Slice(0, 0, 50, 50),)


def test_a_split_by_characters_needs_plain_utf8(tmp_path: Path) -> None:
    packed, bad = tmp_path / "a.txt.gz", tmp_path / "bad.txt"
    packed.write_bytes(gzip.compress(b"some text"))
    with pytest.raises(UsageError, match=r"cuts plain text only; unpack a\.txt\.gz"):
        planned(on_disk(packed), split_by="characters")
    bad.write_bytes(b"caf\xe9 " * 9)
    with pytest.raises(BadDataError, match=r"bad\.txt:1:3: byte 0xe9"):
        planned(on_disk(bad))
    with pytest.raises(BadDataError, match=r"bad\.txt is not UTF-8, which a split by characters"):
        planned(on_disk(bad), errors="replace")
    [unit] = planned(on_disk(bad), errors="skip")  # and is counted as it is met again
    assert unit.slices == (Slice(0, 0, 45, 45),)


def test_a_long_text_that_is_not_utf8_says_so_in_each_slice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", (50, 50))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"words and words " * 9 + b"caf\xe9 " * 9)
    pieces = [
        piece
        for unit in planned(on_disk(bad), errors="replace", split_by="documents")
        for piece in unit.slices
    ]
    assert len(pieces) == 3
    assert all(piece.replaced for piece in pieces)


def test_a_slice_knows_its_split_or_asks_the_text() -> None:
    rule = SplitRuleRecord(rule="documents", val_fraction=0.4, seed=1)
    texts = [b"one", b"two", b"three", b"four", b"five", b"six"]
    for piece, expected in (
        (Slice(0, 0, 9, 9, "val", val_rows=frozenset()), ["val"] * 6),
        (
            Slice(0, 0, 9, 9, val_rows=frozenset({0, 4})),
            ["val", "train", "train", "train", "val", "train"],
        ),
        (Slice(0, 0, 9, 9, val_rows=frozenset()), ["train"] * 6),
        (Slice(0, 0, 9, 9), [by_hash([text], rule) for text in texts]),
    ):
        assert [piece.split_of([text], n, rule) for n, text in enumerate(texts)] == expected
    assert {by_hash([text], rule) for text in texts} == {"train", "val"}


def test_the_parts_of_a_unit_are_parts_of_its_files() -> None:
    recipe, [files] = recipe_of({"x/a.jsonl": 9, "y/b.md.gz": 5})
    [unit] = plan(recipe, [files], True)
    assert parts_of(unit, recipe.ingredients[0], files, "skip") == (
        (Slice(0, 0, 9, 9), Part(Path("x/a.jsonl"), Format("lines"), 0, 9, "text", "skip")),
        (Slice(1, 0, 5, 5), Part(Path("y/b.md.gz"), Format("text", ".gz"), 0, 5, "text", "skip")),
    )
