"""The units of one process: which are its own, which files they need when, and what it reports."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data.manifest import SourceRecord
from prepare.corpora import find
from prepare.options import PrepareConfig
from prepare.recipe import Recipe, make_ingredient, make_recipe
from prepare.sources.files import LocalFiles
from prepare.sources.local import Source
from prepare.units import plan as plans
from prepare.units.journal import TOKENIZER, WorkFolder, claimed
from prepare.units.limits import Quotas
from prepare.units.plan import Unit, plan
from prepare.units.ranks import Ranks
from prepare.units.schedule import UnitEncoder, UnitProgress, default_workers
from tests.conftest import build, write_jsonl


class NotedFiles(LocalFiles):
    """Local files that note what is asked of them, as those of the hub would be fetched."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(tuple(Source(path.name, path) for path in paths))
        object.__setattr__(self, "calls", [])

    def path(self, file: int) -> Path:
        self.note("path", file)
        return super().path(file)

    def expect(self, file: int) -> None:
        self.note("expect", file)

    def release(self, file: int) -> None:
        self.note("release", file)

    def note(self, what: str, file: int) -> None:
        calls: list[str] = self.calls  # type: ignore[attr-defined]
        if (call := f"{what} {file}") not in calls[-1:]:
            calls.append(call)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three files of lines, of two, one and three units each, as UNIT_BYTES is patched here."""
    return [
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} text {n:02}" for n in range(lines)])
        for name, lines in (("a", 7), ("b", 4), ("c", 11))
    ]


def planned(
    paths: list[Path],
    corpus: str = "text",
    **options: Any,
) -> tuple[Recipe, list[Unit], NotedFiles]:
    config = PrepareConfig(corpus="text", **{"tokenizer": "byte", "val_fraction": 0.4, **options})
    records = [
        SourceRecord(name=path.name, bytes=path.stat().st_size, sha256="0" * 64) for path in paths
    ]
    recipe = make_recipe([make_ingredient(find(corpus), records, None, config)], config)
    files = NotedFiles(paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "UNIT_BYTES", (100, 100))
        return recipe, plan(recipe, [files], True), files


def encoded(
    out: Path,
    recipe: Recipe,
    units: list[Unit],
    files: NotedFiles,
    ranks: Ranks,
) -> list[tuple[int, int]]:
    """The units that a rank has encoded, each with its tokens."""
    with claimed(out, fresh=True) as work:
        tokenizer = tokenizers.byte()
        tokenizer.save(out / TOKENIZER)
        share = UnitEncoder(work, recipe, tokenizer, [files], 1, ranks, lambda text: None)
        quotas = Quotas(work, recipe, units)
        found = []
        for unit, tokens in share.encode(units, quotas):
            found.append((unit.index, tokens))
            list(quotas.new())
        return found


def files_of(units: list[Unit]) -> list[list[int]]:
    return [unit.files for unit in units]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_unit_is_one_ranks(size: int, paths: list[Path], tmp_path: Path) -> None:
    recipe, units, files = planned(paths)
    assert files_of(units) == [[0], [0], [1], [2], [2], [2]]
    tokens = {}
    for rank in range(size):
        found = encoded(tmp_path / "out", recipe, units, files, Ranks(rank, size, "run"))
        assert [unit for unit, _ in found] == list(range(rank, len(units), size))
        tokens.update(found)
    lines = 7 + 4 + 11
    assert sum(tokens.values()) == lines * (len("a text 00") + 1)


def test_a_file_of_the_hub_is_one_ranks(paths: list[Path], tmp_path: Path) -> None:
    recipe, units, files = planned(paths, corpus="tinystories")
    for rank, mine in ((0, {0, 2}), (1, {1})):
        found = encoded(tmp_path / "out", recipe, units, files, Ranks(rank, 2, "run"))
        assert [unit for unit, _ in found] == [
            unit.index for unit in units if mine & set(unit.files)
        ]


def test_a_file_is_fetched_ahead_and_given_up_after_its_last_unit(
    paths: list[Path],
    tmp_path: Path,
) -> None:
    recipe, units, files = planned(paths)
    encoded(tmp_path / "out", recipe, units, files, Ranks())
    calls: list[str] = files.calls  # type: ignore[attr-defined]
    for file in range(3):
        assert calls.count(f"release {file}") == 1
        last_read = max(place for place, call in enumerate(calls) if call == f"path {file}")
        assert calls.index(f"release {file}") > last_read
        if file:
            first_read = calls.index(f"path {file}")
            assert calls.index(f"expect {file}") < first_read
            assert calls.index(f"release {file - 1}") > calls.index(f"expect {file}")
    assert calls.index("expect 2") > calls.index("release 0"), "one file ahead, no more"
    assert calls[-1] == "release 2"


@pytest.mark.parametrize("limit", [{"max_documents": 3}, {"max_tokens": 60}])
def test_where_there_is_a_limit_no_file_is_fetched_ahead(
    limit: dict[str, int],
    paths: list[Path],
    tmp_path: Path,
) -> None:
    recipe, units, files = planned(paths, **limit)
    found = encoded(tmp_path / "out", recipe, units, files, Ranks())
    assert 1 <= len(found) <= 2
    calls: list[str] = files.calls  # type: ignore[attr-defined]
    assert not [call for call in calls if call.startswith("expect") or call == "path 2"]


def test_a_finished_folder_takes_no_more_units(paths: list[Path], tmp_path: Path) -> None:
    """Of a rank that still encodes while the first one has all that the limit needs."""
    recipe, units, files = planned(paths)
    with claimed(tmp_path / "out", fresh=True) as work:
        tokenizers.byte().save(tmp_path / "out" / TOKENIZER)
        share = UnitEncoder(work, recipe, tokenizers.byte(), [files], 1, Ranks(), lambda text: None)
        encoding = share.encode(units, Quotas(work, recipe, units))
        assert next(encoding)[0].index == 0
        (tmp_path / "out" / "manifest.json").touch()
        assert list(encoding) == []


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"),
    [
        (1, None, 1),
        (3, None, 3),
        (8, "1", 8),
        (9, None, 8),
        (64, "", 8),
        (64, "0", 8),
        (64, "many", 8),
        (64, "2", 4),
        (4, "3", 1),
        (2, "16", 1),
    ],
)
def test_workers_are_as_many_as_there_are_cores(
    cores: int,
    ranks: str | None,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that this process may use, at most 8, and shared with other ranks of this machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)) if pid == 0 else 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert default_workers() == workers
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert default_workers() == workers
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1


def test_progress_is_told_in_bytes_and_tokens(paths: list[Path], tmp_path: Path) -> None:
    _, units, _ = planned(paths)
    total = sum(path.stat().st_size for path in paths)
    told: list[tuple[str, int, int, int]] = []
    work = WorkFolder(tmp_path)
    meter = UnitProgress(work, units, Ranks(), lambda *figures: told.append(figures))
    meter.start(units[2:])
    before = units[0].bytes + units[1].bytes
    assert told == [("tokens", before, total, 0)]
    meter.done(units[2], 30)
    meter.done(units[3], 12)
    after = before + units[2].bytes
    assert told[1:] == [
        ("tokens", after, total, 30),
        ("tokens", after + units[3].bytes, total, 42),
    ]


def test_progress_of_several_ranks_is_what_all_have_done(
    paths: list[Path],
    tmp_path: Path,
) -> None:
    recipe, units, files = planned(paths)
    told: list[tuple[str, int, int, int]] = []
    with claimed(tmp_path / "out", fresh=True) as work:
        work.shared = True
        tokenizer = tokenizers.byte()
        tokenizer.save(tmp_path / "out" / TOKENIZER)
        meter = UnitProgress(work, units, Ranks(0, 2, "run"), lambda *figures: told.append(figures))
        meter.start(units)
        for rank in (1, 0):
            share = UnitEncoder(
                work, recipe, tokenizer, [files], 1, Ranks(rank, 2, "run"), lambda text: None
            )
            for unit, tokens in share.encode(units, Quotas(work, recipe, units)):
                if rank == 0:
                    meter.done(unit, tokens)
        (work.units / f"{len(units):06d}.json").touch()  # of an earlier plan that had more
        meter.look()
    total = sum(unit.bytes for unit in units)
    others = sum(unit.bytes for unit in units[1::2])
    assert told[0] == ("tokens", 0, total, 0)
    assert told[1][1] == others + units[0].bytes
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    assert told[-1] == told[-2] == ("tokens", total, total, told[-1][3])
    assert told[-1][3] > 0


def test_a_warning_of_the_tokenizer_is_told_once(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nanogpt_dist.tokenizer.tokenizer.Tokenizer.warning", "it is slow")
    monkeypatch.setattr(plans, "UNIT_BYTES", (100, 100))
    notes: list[str] = []
    build("text", tmp_path / "out", paths, tokenizer="byte", val_fraction=0.4, workers=1)
    build(
        "text",
        tmp_path / "told",
        paths,
        tokenizer="byte",
        val_fraction=0.4,
        workers=1,
        note=notes.append,
    )
    assert notes == ["warning: it is slow"]
