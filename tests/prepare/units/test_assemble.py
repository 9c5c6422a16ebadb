"""Units to shards: where shards end, what is counted, and what a run that was stopped had done."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist.data import DataFolder, Manifest, verify_folder
from nanogpt_dist.data.manifest import SplitRuleRecord
from nanogpt_dist.errors import StorageError
from prepare.units import assemble
from prepare.units import plan as plans
from prepare.units.journal import WORK
from prepare.units.split import by_hash
from tests.conftest import build, hashes, write_jsonl

RULE = SplitRuleRecord(rule="documents", val_fraction=0.3, seed=2357)
GIVEN: dict[str, Any] = {
    "tokenizer": "byte",
    "val_fraction": 0.3,
    "workers": 1,
    "shard_tokens": 100,
}
TEXTS = [f"text {n} " + "x" * (n % 7) for n in range(60)]


class Stopped(Exception):
    """As by a signal."""


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", (200, 200))


def made(
    out: Path,
    source: Path,
    stop_after: int = -1,
    **options: Any,
) -> Manifest:
    """A data set of a few units, or what is there when so many of them are done."""
    told = 0

    def progress(what: str, done: int, total: int, tokens: int) -> None:
        nonlocal told
        told += 1
        if told > stop_after >= 0:
            raise Stopped

    return build("text", out, [source], **{**GIVEN, "progress": progress, **options})


@pytest.mark.parametrize("read_bytes", [2, 6, 64, 8 << 20])
@pytest.mark.parametrize("shard_tokens", [30, 100, 10**6])
def test_shards_are_the_documents_in_order(
    read_bytes: int,
    shard_tokens: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "READ_BYTES", read_bytes)
    texts = [*TEXTS, "", "", *TEXTS[:4]]
    manifest = made(
        tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", texts), shard_tokens=shard_tokens
    )
    assert verify_folder(tmp_path / "out") == []
    data = DataFolder.open(tmp_path / "out")
    for name in ("train", "val"):
        mine = [text for text in texts if text and by_hash([text.encode()], RULE) == name]
        ids = [number for text in mine for number in (*text.encode(), 256)]
        split, record = data.split(name), manifest.splits[name]  # type: ignore[index,arg-type]
        assert split.read(0, split.tokens).tolist() == ids
        assert split.document_ends().tolist() == np.cumsum([len(t) + 1 for t in mine]).tolist()
        assert (record.documents, record.bytes) == (len(mine), sum(map(len, mine)))
        assert [shard.tokens for shard in record.shards[:-1]] == [shard_tokens] * (
            len(record.shards) - 1
        )
        assert 0 < record.shards[-1].tokens <= shard_tokens
    assert manifest.counts.empty == 2
    assert manifest.sources[0].documents == len(texts) - 2


@pytest.mark.parametrize("shard_tokens", [25, 100, 10**6])
def test_a_stopped_run_is_gone_on_with_where_it_was(shard_tokens: int, tmp_path: Path) -> None:
    """Whichever unit was the last: what is in units or shards is not done again.

    Nor a unit whose ids for training are in a shard, while those for validation wait for theirs.
    """
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options: dict[str, Any] = {"shard_tokens": shard_tokens}
    manifest = made(tmp_path / "whole", source, **options)
    units = -(-source.stat().st_size // 200)
    for done in (1, 3, units - 1):
        out = tmp_path / f"stopped-{done}"
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(Stopped):
            made(out, source, stop_after=done, **options)
        assert len(os.listdir("/proc/self/fd")) == len(descriptors)
        shards = {path: path.stat().st_mtime_ns for path in out.glob("*.bin")}
        if shard_tokens == 25 and done > 3:
            assert shards
            assert not (out / WORK / "units" / "000000.train").exists(), "its ids are in shards"
        notes: list[str] = []
        figures: list[tuple[int, int, int]] = []
        found = made(
            out,
            source,
            note=notes.append,
            progress=lambda what, *told: figures.append(told),  # noqa: B023
            **options,
        )
        assert found == manifest
        assert hashes(out) == hashes(tmp_path / "whole")
        assert notes == [f"going on: {done} of {units} units were done before"]
        size = source.stat().st_size
        assert [told[:2] for told in figures] == [
            (min(size, 200 * n), size) for n in range(done, units + 1)
        ]
        assert {path: path.stat().st_mtime_ns for path in shards} == shards
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_files_of_units_go_as_soon_as_their_ids_are_in_shards(tmp_path: Path) -> None:
    """Or the disk would have to hold everything twice."""
    out, source = tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", TEXTS * 3)
    held: list[int] = []

    def look(what: str, done: int, total: int, tokens: int) -> None:
        held.append(len(list((out / WORK / "units").glob("*.train"))))

    made(tmp_path / "whole", source)
    made(out, source, progress=look)
    assert len(held) > 20
    assert 1 <= max(held) <= 4


@pytest.mark.parametrize("kind", ["train", "val"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "longer", "another"])
def test_a_damaged_unit_is_done_again(kind: str, damage: str, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "out"
    made(tmp_path / "whole", source, shard_tokens=10**6)
    with pytest.raises(Stopped):
        made(out, source, stop_after=5, shard_tokens=10**6)
    path = out / WORK / "units" / f"000002.{kind}"
    data = path.read_bytes()
    assert data
    path.unlink()
    if damage != "gone":
        path.write_bytes(
            {"shorter": data[:-2], "longer": data + data[:2], "another": data[::-1]}[damage]
        )
    notes: list[str] = []
    if damage == "another":  # which only its checksum tells
        message = r"units: unit 2 was damaged on the disk; run the same command again"
        with pytest.raises(StorageError, match=message):
            made(out, source, shard_tokens=10**6, note=notes.append)
    made(out, source, shard_tokens=10**6, note=notes.append)
    units = -(-source.stat().st_size // 200)
    told = [f"going on: {done} of {units} units were done before" for done in (5, 4)]
    assert notes == (told if damage == "another" else told[1:])
    assert hashes(out) == hashes(tmp_path / "whole")


def test_what_is_beyond_a_limit_is_not_missing(tmp_path: Path) -> None:
    """Stopped when the last unit that counts was done, it has nothing left to encode."""
    source, out = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "out"
    whole = made(tmp_path / "whole", source, max_documents=20)
    with pytest.raises(Stopped):
        made(out, source, max_documents=20, stop_after=3)
    notes: list[str] = []
    assert made(out, source, max_documents=20, note=notes.append) == whole
    units = -(-source.stat().st_size // 200)
    assert units > 6
    assert notes == [f"going on: {units} of {units} units were done before"]
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_text_that_begins_in_one_unit_and_ends_in_another_is_one_document(
    tmp_path: Path,
) -> None:
    source = tmp_path / "a.txt"
    source.write_text("words of a long text " * 100)
    manifest = made(tmp_path / "out", source)
    assert [split.documents for split in manifest.splits.values()] == [1, 1]
    assert sum(split.bytes for split in manifest.splits.values()) == 2100
    ends = [shard.documents for shard in manifest.splits["train"].shards]
    assert ends == [0] * (len(ends) - 1) + [1]
    for before, after in pairwise(manifest.splits["train"].shards):
        assert before.file.name < after.file.name


def test_a_document_of_one_id_has_an_end(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list("abcdefgh") * 9)
    made(tmp_path / "out", source, tokenizer="char")
    for split in DataFolder.open(tmp_path / "out").splits.values():
        assert split.document_ends().tolist() == list(range(1, split.tokens + 1))
