"""How much is taken: --max-documents, --max-tokens, and the weights of a mix; whole documents, in
any units.
"""

from pathlib import Path

import pytest

from nanogpt_dist.data import DataFolder, Manifest
from nanogpt_dist.errors import BadDataError, UsageError
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
    with pytest.raises(UsageError, match="--split-by documents"):
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
