"""How much is taken: --max-documents, --max-tokens, and the weights of a mix; whole documents, in
any units.
"""

import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.data import DataFolder, Manifest
from nanogpt_dist.data.manifest import SourceRecord
from nanogpt_dist.errors import BadDataError, UsageError
from prepare.corpora import find
from prepare.options import PrepareConfig
from prepare.recipe import make_ingredient, make_recipe
from prepare.units.encode import (
    DOCUMENT,
    EMPTY,
    REPLACED,
    SKIPPED,
    WHOLE,
    UnitRecord,
    unit_path,
)
from prepare.units.journal import WorkFolder
from prepare.units.limits import Limits, Quotas
from prepare.units.plan import Slice, Unit
from tests.conftest import build, hashes, write_jsonl

TEXTS = [f"document {i} " + "x" * (i % 50) for i in range(500)]


def documents(folder: Path) -> list[str]:
    data = DataFolder.open(folder)
    found = [data.tokenizer.decode(split.read(0, split.tokens)) for split in data.splits.values()]
    return [text for split in found for text in split.split("<|endoftext|>")[:-1]]


def totals(manifest: Manifest) -> tuple[int, int]:
    splits = manifest.splits.values()
    return sum(split.documents for split in splits), sum(split.tokens for split in splits)


@pytest.mark.parametrize("unit_bytes", [1 << 20, 1000])
@pytest.mark.parametrize(
    "limit", [{"max_documents": 7}, {"max_documents": 499}, {"max_documents": 10_000}]
)
def test_the_first_documents(
    limit: dict[str, int],
    unit_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (unit_bytes, unit_bytes))
    source = write_jsonl(tmp_path / "a.jsonl", ["", *TEXTS])
    manifest = build(
        "text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.3, workers=1, **limit
    )
    wanted = TEXTS[: limit["max_documents"]]
    assert sorted(documents(tmp_path / "out")) == sorted(wanted)
    assert totals(manifest)[0] == len(wanted)
    assert manifest.max_documents == limit["max_documents"]


@pytest.mark.parametrize("max_tokens", [100, 5000, 10**6])
def test_no_more_tokens_than_asked_for(max_tokens: int, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for unit_bytes in (1 << 20, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prepare.units.plan.UNIT_BYTES", (unit_bytes, unit_bytes))
            options = {"tokenizer": "byte", "val_fraction": 0.3, "max_tokens": max_tokens}
            manifest = build("text", tmp_path / str(unit_bytes), [source], workers=1, **options)
    count, tokens = totals(manifest)
    assert tokens <= max_tokens
    assert sorted(documents(tmp_path / "1000")) == sorted(TEXTS[:count])
    assert count == len(TEXTS) or tokens + len(TEXTS[count]) + 1 > max_tokens
    assert hashes(tmp_path / "1000") == hashes(tmp_path / str(1 << 20))


@pytest.mark.parametrize("max_tokens", [None, 4000])
def test_a_mix_has_its_parts_by_weight(
    max_tokens: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (2000, 2000))
    write_jsonl(tmp_path / "a.jsonl", [f"a{i} " + "a" * 30 for i in range(400)])
    (tmp_path / "b").mkdir()
    for number in range(300):
        (tmp_path / "b" / f"{number}.md").write_text(f"b{number} " + "b" * 20)
    for workers in (1, 2):
        mix = "a.jsonl=0.7,b=0.3"
        options = {"tokenizer": "byte", "val_fraction": 0.2, "max_tokens": max_tokens}
        manifest = build("text", tmp_path / f"out{workers}", mix=mix, workers=workers, **options)
    a, b = manifest.sources
    assert (manifest.name, a.weight, b.weight) == ("mix", 0.7, 0.3)
    assert abs(a.tokens / (a.tokens + b.tokens) - 0.7) < 0.01
    found = documents(tmp_path / "out1")
    assert (
        sum(text.startswith("a") for text in found),
        sum(text.startswith("b") for text in found),
    ) == (
        a.documents,
        b.documents,
    )
    assert b.documents < 300  # a was used up, or both were cut short
    assert (a.documents == 400) == (max_tokens is None)
    assert hashes(tmp_path / "out1") == hashes(tmp_path / "out2")


def test_a_long_document_is_taken_whole_or_not_at_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (1000, 1000))
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number:02}.md").write_text(f"document {number}")
    (tmp_path / "texts" / "99.md").write_text("a long document " * 1000)
    build(
        "text",
        tmp_path / "out",
        [tmp_path / "texts"],
        tokenizer="byte",
        val_fraction=0.4,
        max_tokens=3000,
    )
    assert len(documents(tmp_path / "out")) == 20
    for split in DataFolder.open(tmp_path / "out").splits.values():
        assert split.document_ends()[-1] == split.tokens
    source = tmp_path / "one.txt"
    source.write_text("one text " * 1000)
    with pytest.raises(UsageError, match="leave --max-documents"):
        build("text", tmp_path / "one", [source], tokenizer="byte", max_tokens=100)
    with pytest.raises(BadDataError, match="no document fits into --max-tokens 5"):
        build("text", tmp_path / "none", [tmp_path / "texts"], tokenizer="byte", max_tokens=5)


def test_the_scarcest_part_limits_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rare.jsonl", [f"a{i} " + "a" * 30 for i in range(40)])
    write_jsonl(tmp_path / "many.jsonl", [f"b{i} " + "b" * 30 for i in range(4000)])
    mix = "rare.jsonl=0.7,many.jsonl=0.3"
    manifest = build(
        "text", tmp_path / "out", mix=mix, tokenizer="byte", val_fraction=0.2, max_tokens=50_000
    )
    rare, many = manifest.sources
    assert (rare.corpus, many.corpus) == ("rare-jsonl", "many-jsonl")
    assert rare.documents == 40
    assert abs(rare.tokens / (rare.tokens + many.tokens) - 0.7) < 0.02
    with pytest.raises(UsageError, match="neither a corpus"):
        build("text", tmp_path / "o", mix="rare.jsonl=0.7,missing=0.3", tokenizer="byte")


def test_a_part_of_a_mix_that_gives_nothing_is_told(tmp_path: Path) -> None:
    many = write_jsonl(tmp_path / "many.jsonl", [f"page {n}" for n in range(300)])
    one = write_jsonl(tmp_path / "one.jsonl", ["x" * 100_000])
    notes: list[str] = []
    build(
        "text",
        tmp_path / "out",
        mix=f"{many}=0.5,{one}=0.5",
        tokenizer="byte",
        val_fraction=0.2,
        workers=1,
        note=notes.append,
    )
    assert [note.rpartition("/")[2] for note in notes] == [
        "one.jsonl gave no tokens: its first document is larger than its part of the mix"
    ]


def row(status: int, tokens: int) -> tuple[int, bool, int, int, int, int]:
    return 0, True, status, 0, tokens, tokens


@given(
    st.lists(
        st.builds(row, st.sampled_from([WHOLE, REPLACED]), st.integers(1, 6))
        | st.builds(row, st.sampled_from([EMPTY, SKIPPED]), st.just(0)),
        max_size=12,
    ),
    st.lists(st.integers(0, 12), max_size=3),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(0, 30),
)
def test_limits_are_those_of_one_document_after_the_other(
    rows: list[tuple[int, bool, int, int, int, int]],
    cuts: list[int],
    max_documents: int | None,
    max_tokens: int | None,
) -> None:
    """However they come in units: the longest row of documents from the first on."""
    expected: list[int] = []  # their places
    tokens, reached = 0, False
    real = [place for place, each in enumerate(rows) if each[2] in (WHOLE, REPLACED)]
    for place in real:
        if max_tokens is not None and tokens + rows[place][4] > max_tokens:
            reached = True
            break
        expected.append(place)
        tokens += rows[place][4]
        if max_documents == len(expected) or tokens == max_tokens:
            reached = True
            break
    limits = Limits([None, max_documents], [None, max_tokens])
    found: list[int] = []
    borders = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    for start, stop in pairwise(borders):
        if not limits.full[1]:
            found += range(start, start + limits.take(1, np.array(rows[start:stop], DOCUMENT)))
    assert [place for place in found if place in real] == expected
    assert limits.taken == [0, tokens]
    if max_tokens != 0:  # else nothing is asked for, and a unit of empty documents may be passed by
        assert reached or found == list(range(len(rows)))
    if expected and len(expected) == max_documents:
        assert found[-1] == expected[-1]
    if reached:
        assert limits.full == [False, True]
    elif max_tokens != 0:
        assert limits.full == [False, False]


def part_of(texts: list[str], budget: int) -> list[str]:
    """The first `texts` whose ids, with end of text, are `budget` at most."""
    stops = np.cumsum([len(text) + 1 for text in texts])
    return texts[: int((stops <= budget).sum())]


@pytest.mark.parametrize("unit_bytes", [60, 1 << 20])
@pytest.mark.parametrize(
    ("weights", "max_tokens"),
    [
        ((0.5, 0.5), 100),  # a budget that whole documents fill to the last id
        ((0.5, 0.5), None),
        ((0.25, 0.75), 400),
        ((0.9, 0.1), 331),
        ((0.1, 0.9), 10**6),  # the second has not that many
        ((0.6, 0.4), 1000),
    ],
)
def test_a_mix_is_what_its_weights_say(
    weights: tuple[float, float],
    max_tokens: int | None,
    unit_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the document: of each part as many from the first on as its share of the tokens holds."""
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (unit_bytes, unit_bytes))
    texts = [[f"a{n:03}:{'x' * 4}" for n in range(60)], [f"b{n:03}{'y' * 10}" for n in range(40)]]
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", each) for n, each in enumerate(texts)]
    totals_ = [sum(len(text) + 1 for text in each) for each in texts]
    whole = min(total / weight for total, weight in zip(totals_, weights, strict=True))
    whole = min(whole, max_tokens or whole)
    expected = [
        part_of(each, int(whole * weight + 1e-6))
        for each, weight in zip(texts, weights, strict=True)
    ]
    mix = ",".join(f"{path}={weight}" for path, weight in zip(paths, weights, strict=True))
    told: list[tuple[int, int]] = []
    manifest = build(
        "text",
        tmp_path / "out",
        mix=mix,
        tokenizer="byte",
        val_fraction=0.3,
        max_tokens=max_tokens,
        workers=1,
        progress=lambda what, done, total, tokens: told.append((done, total)),
    )
    assert sorted(documents(tmp_path / "out")) == sorted([*expected[0], *expected[1]])
    for source, mine in zip(manifest.sources, expected, strict=True):
        assert source.documents == len(mine)
        assert source.tokens == sum(len(text) + 1 for text in mine)
    if unit_bytes == 60 and whole == max_tokens:  # and little more was read than that
        read = sum(len(text) + 14 for each in expected for text in each)
        assert told[-1][0] <= read + 4 * unit_bytes


@pytest.mark.parametrize("limit", [{"max_documents": 40}, {"max_tokens": 500}])
def test_no_more_units_are_encoded_than_the_limit_needs(
    limit: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (200, 200))
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    bytes_done: list[int] = []
    manifest = build(
        "text",
        tmp_path / "out",
        [source],
        tokenizer="byte",
        val_fraction=0.3,
        workers=1,
        progress=lambda what, done, total, tokens: bytes_done.append(done),
        **limit,
    )
    read = sum(len(text) + 13 for text in TEXTS[: totals(manifest)[0]])
    assert read - 200 <= bytes_done[-1] <= read + 400 < source.stat().st_size


def test_a_part_of_a_mix_that_has_enough_wants_no_more(tmp_path: Path) -> None:
    """Also of a rank that only encodes, by what others have done meanwhile."""
    config = PrepareConfig(mix="a=0.5,b=0.5", tokenizer="byte", max_tokens=100, val_fraction=0.3)
    record = SourceRecord(name="a.jsonl", bytes=9, sha256="0" * 64)
    ingredients = [make_ingredient(find("text"), [record], None, config, 0.5) for _ in range(2)]
    units = [Unit(index, index % 2, (Slice(0, 0, 9, 9),)) for index in range(8)]
    work = WorkFolder(tmp_path)
    work.units.mkdir(parents=True)
    quotas = Quotas(work, make_recipe(ingredients, config), units)

    def done(unit: int, tokens: int) -> None:
        table = np.array([row(WHOLE, tokens)], DOCUMENT).tobytes()
        record = UnitRecord(unit, "", (0, 0), (0, 0), (len(table), zlib.crc32(table)))
        unit_path(work.units, unit, "documents").write_bytes(table)
        unit_path(work.units, unit, "json").write_bytes(record.to_json())

    def wanted() -> list[bool]:
        return [quotas.wants(unit) for unit in units[:2]]

    assert wanted() == [True, True]
    done(0, 49)
    done(4, 30)  # which is behind a gap
    assert wanted() == [True, True]
    done(2, 1)
    assert wanted() == [False, True]
    assert list(quotas.new()) == []
    for unit in (1, 3, 5, 7):  # all that there is of it, and less than its share
        assert wanted() == [False, True]
        done(unit, 5)
    assert wanted() == [True, True]  # now what is taken counts: 20 of each
    taken = [(unit.index, len(documents)) for unit, _, documents in quotas.new()]
    assert taken == [(0, 0), (1, 1), (3, 1), (5, 1), (7, 1)]  # the first of the other is too large
    assert wanted() == [False, False]
    assert quotas.complete
    assert quotas.without_tokens() == [0]
