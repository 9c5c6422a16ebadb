"""The output folder while it is being filled: whose it is, and what an unfinished run leaves
behind.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.manifest import FileRecord, ShardRecord
from nanogpt_dist.errors import BadDataError, CannotCreateError, StorageError
from nanogpt_dist.storage.durable import sha256_file
from nanogpt_dist.storage.runlock import RunLock
from prepare.units.journal import (
    LOCK,
    WORK,
    WorkFolder,
    claimed,
    read_json,
    refuse_strangers,
    remove_leftovers,
)
from tests.conftest import Run, build, hashes, write_jsonl
from tests.faults.disk import FailingDisk, Operation, PowerCut


def test_other_peoples_folders_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    for name in ("notes.md", "tokenizer.json", "text_train_000000.bin"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(CannotCreateError, match=f"holds {name}"):
            build("text", folder, [source], tokenizer="byte")
        assert os.listdir(folder) == [name]
    with pytest.raises(CannotCreateError, match="not a folder"):
        build("text", source, [source], tokenizer="byte")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    holder = rf"in use by process {os.getpid()} on .*--out$"
    with claimed(tmp_path / "out", fresh=False), pytest.raises(CannotCreateError, match=holder):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    assert not (tmp_path / "out").exists()
    build("text", tmp_path / "out", [source], tokenizer="byte")
    assert WORK not in os.listdir(tmp_path / "out")


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(BadDataError):
        build("text", tmp_path / "deep" / "er" / "out", [tmp_path / "bad.txt"], tokenizer="byte")
    assert not (tmp_path / "deep").exists()


def unfinished(folder: Path) -> Path:
    """A source whose third unit cannot be encoded, and the folder that holds the first two."""
    texts = [f"document {i} " + "some text " * 100 for i in range(3000)]
    source = write_jsonl(folder / "a.jsonl", texts)
    with source.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    with pytest.raises(
        BadDataError, match=r"a\.jsonl:3001:13: byte 0xe9 is not UTF-8; .* --errors replace or skip"
    ):
        build("text", folder / "out", [source], tokenizer="byte", workers=1)
    assert {path.name for path in WorkFolder(folder / "out").units.glob("*.json")} == {
        "000000.json",
        "000001.json",
    }
    return source


def test_what_is_done_stays_done_when_bad_text_is_met(tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    told: list[str] = []
    manifest = build(
        "text", tmp_path / "out", [source], tokenizer="byte", errors="skip", note=told.append
    )
    assert told == ["going on: 2 of 3 units were done before"]
    assert manifest.counts.skipped == 1
    build("text", tmp_path / "at-once", [source], tokenizer="byte", errors="skip")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")


def test_an_unfinished_folder_is_gone_on_with_or_given_up_on_purpose(tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    with pytest.raises(
        CannotCreateError,
        match="unfinished prepare with tokenizer byte, not gpt2; finish it, add --fresh",
    ):
        build("text", tmp_path / "out", [source], tokenizer="gpt2")
    source.write_bytes(source.read_bytes().replace(b"\xe9", b"e"))
    with pytest.raises(CannotCreateError, match="other source files"):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    build("text", tmp_path / "out", [source], tokenizer="byte", fresh=True)
    assert WORK not in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("kind", ["train", "val", "documents", "json"])
@pytest.mark.parametrize("damage", ["gone", "cut off", "flipped"])
def test_damaged_leftovers_are_done_again(kind: str, damage: str, tmp_path: Path) -> None:
    source = unfinished(tmp_path)
    path = tmp_path / "out" / WORK / "units" / f"000001.{kind}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            data[: len(data) // 2]
            if damage == "cut off"
            else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        )
    options = {"tokenizer": "byte", "errors": "skip"}
    if damage == "flipped" and kind in ("train", "val"):  # noticed only as the file is read
        with pytest.raises(StorageError, match="damaged on the disk; run the same command again"):
            build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")


def test_shards_that_are_there_are_kept_if_they_are_good(tmp_path: Path) -> None:
    """Small shards: some are whole before the third unit fails. A damaged one, and those behind it,
    are made again.
    """
    texts = [f"document {i} " + "some text " * 100 for i in range(3000)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    good = source.read_bytes()
    options = {"tokenizer": "byte", "shard_tokens": 300_000, "val_fraction": 0.2, "errors": "skip"}
    bad_line = b'{"text": "caf\xe9"}\n'
    source.write_bytes(good + bad_line)
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    for damaged in (None, 0, 3):
        out = tmp_path / f"out-{damaged}"
        with pytest.raises(BadDataError):
            build("text", out, [source], **{**options, "errors": "strict"}, workers=1)  # type: ignore[arg-type]
        kept = sorted(out.glob("*_train_*.bin"))
        assert len(kept) >= 5
        assert not (out / WORK / "units" / "000000.train").exists(), "its ids are in shards"
        if damaged is not None:
            data = kept[damaged].read_bytes()
            kept[damaged].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        before = [path.stat().st_mtime_ns for path in kept]
        build("text", out, [source], **options)  # type: ignore[arg-type]
        same = [path.stat().st_mtime_ns == time for path, time in zip(kept, before, strict=True)]
        assert same == [damaged is None or index < damaged for index in range(len(kept))]
        assert hashes(out) == hashes(tmp_path / "at-once")
        DataFolder.open(out)


def test_units_of_another_plan_are_no_units_of_this_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = unfinished(tmp_path)
    options = {"tokenizer": "byte", "errors": "skip", "val_fraction": 0.3}
    build("text", tmp_path / "at-once", [source], **options)  # type: ignore[arg-type]
    (tmp_path / "out" / WORK / "plan.json").write_text("{}")
    build("text", tmp_path / "out", [source], **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "at-once")
    second = tmp_path / "second"
    second.mkdir()
    source = unfinished(second)
    monkeypatch.setattr("prepare.units.plan.UNIT_BYTES", (5000, 5000))
    with pytest.raises(CannotCreateError, match="another version of nanogpt, or other units"):
        build("text", second / "out", [source], tokenizer="byte", errors="skip")


def test_another_corpus_in_a_finished_folder_is_refused_without_a_network(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])
    build("text", tmp_path / "out", [source], tokenizer="byte")
    with pytest.raises(CannotCreateError, match="corpus text, not shakespeare"):
        build("shakespeare", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, nanogpt: Run) -> None:
    write_jsonl(tmp_path / "a.jsonl", [f"document {i} " + "some text " * 200 for i in range(5000)])
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        line = ["prepare", "text", "--source", "a.jsonl", "--tokenizer", "byte", "--workers", 2]
        error = nanogpt(*line, "--out", "small/out", code=74).stderr
        assert re.fullmatch(
            r"nanogpt: error: disk full: \S+ needs at least [\d,]+ bytes, [\d,]+ are free; .*\n",
            error,
        )
        assert not [path for path in small.rglob("*") if path.name.startswith(".tmp-")]
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        assert "going on: " in nanogpt(*line, "--out", "small/out").stderr
        nanogpt(*line, "--out", "elsewhere")
        assert hashes(small / "out") == hashes(tmp_path / "elsewhere")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def a_unit(work: WorkFolder, unit: int = 0, plan: str = "") -> None:
    """A unit that is done, without a document."""
    record = {"unit": unit, "plan": plan, "train": [4, 1], "val": [0, 0], "documents": [0, 0]}
    (work.units / f"{unit:06d}.json").write_text(json.dumps(record))
    (work.units / f"{unit:06d}.documents").touch()
    (work.units / f"{unit:06d}.train").write_bytes(b"1234")


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


BEGUN = ".tmp-begun-0123"


@pytest.mark.parametrize("shared", [False, True])
def test_what_one_unit_has_cost_stays_for_the_next_run(shared: bool, tmp_path: Path) -> None:
    """What was being written goes; other ranks may still be writing, and see to theirs."""
    out = tmp_path / "deep" / "out"
    with claimed(out, fresh=False) as work:
        work.shared = shared
        work.write_plan({"a": 1}, {})
        work.run.write_text("{}")
        (out / "tokenizer.json").touch()
        a_unit(work)
        for folder in (out, work.folder, work.units, work.shards):
            (folder / BEGUN).touch()
    kept = {f"{WORK}/units/000000.{kind}" for kind in ("json", "documents", "train")}
    kept |= {f"{WORK}/plan.json", f"{WORK}/lock", "tokenizer.json"}
    begun = {f"{place}{BEGUN}" for place in ("", f"{WORK}/", f"{WORK}/units/", f"{WORK}/shards/")}
    assert files_in(out) == kept | {f"{WORK}/run.json"} | (begun if shared else set())
    (work.folder / "failed-1").touch()
    with claimed(out, fresh=False) as work:  # which begins without them
        assert files_in(out) == kept
        assert work.read_plan() == ({"a": 1}, {})
        assert work.read(0) is not None
        assert lock_is_held(out)
    with claimed(out, fresh=True) as work:
        assert files_in(out) == {f"{WORK}/lock"}
        assert work.read_plan() == (None, {})
    assert not list(out.iterdir())


def lock_is_held(out: Path) -> bool:
    try:
        with RunLock(out / WORK, LOCK, "--out", out):
            return False
    except CannotCreateError:
        return True


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("worthless", [False, True])
def test_what_is_worth_nothing_goes(shared: bool, worthless: bool, tmp_path: Path) -> None:
    """Without a unit, or with units that no run can use; other ranks look for what has happened."""
    out = tmp_path / "out"
    with claimed(out, fresh=False) as work:
        work.shared, work.worthless = shared, worthless
        work.run.write_text("{}")
        for name in ("tokenizer.json", "text_train_000000.bin"):
            (out / name).touch()
        if worthless:
            a_unit(work)
    assert out.exists() is shared
    if shared:
        assert files_in(out) == {f"{WORK}/lock", f"{WORK}/run.json"}
        assert work.units.is_dir()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_finished_folder_keeps_all_but_the_work(fresh: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, fresh=False) as work:
        a_unit(work)
        for name in ("tokenizer.json", "text_train_000000.bin", "manifest.json"):
            (out / name).touch()
    finished = {"tokenizer.json", "text_train_000000.bin", "manifest.json"}
    assert files_in(out) == finished
    with claimed(out, fresh=fresh):  # as another run may have finished it just before
        assert files_in(out) == {*finished, f"{WORK}/lock"}
    assert files_in(out) == finished
    assert not (out / WORK).exists()


def test_a_folder_of_the_users_is_not_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out, fresh=False):
        pass
    assert list(tmp_path.iterdir()) == [out]
    assert not list(out.iterdir())


def test_leftovers_go_from_a_finished_folder_only(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.units.mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert work.units.is_dir()
    (tmp_path / "manifest.json").touch()
    with RunLock(work.folder, LOCK), pytest.raises(CannotCreateError, match=r"in use .* --out"):
        remove_leftovers(tmp_path)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["manifest.json"]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_whose_a_folder_is(tmp_path: Path) -> None:
    """Ours where a prepare was there, whatever it has left; a finished one has been looked at."""
    work = WorkFolder(tmp_path / "out")
    refuse_strangers(work)
    work.folder.mkdir(parents=True)
    for name in ("tokenizer.json", BEGUN, "a-b_train_000012.bin", "a_val_000000.ends"):
        (work.out / name).touch()
    refuse_strangers(work)
    for name in ("a_test_000000.bin", "a_train_0000000.bin", "my.bin", "a_val_000000.bin.gz"):
        (work.out / name).touch()
        with pytest.raises(CannotCreateError, match=f"holds {name}, no leftover of prepare"):
            refuse_strangers(work)
        (work.out / name).unlink()
    (work.out / "notes.md").touch()
    (work.out / "manifest.json").touch()
    refuse_strangers(work)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.folder.mkdir()
    assert work.read_plan() == (None, {})
    hashes_ = {"/a/b.txt": ((3, 5, 7), "0" * 64)}
    work.write_plan({"corpus": "text", "sources": [1]}, hashes_)
    assert work.read_plan() == ({"corpus": "text", "sources": [1]}, hashes_)
    for damaged in ("", "[]", "{}", '{"key": {}, "hashes": []}', '{"key": 5, "hashes": {}}'):
        work.plan.write_text(damaged)
        assert work.read_plan() == (None, {})
        assert read_json(work.plan) == (json.loads(damaged) if damaged else None)
    work.plan.unlink()
    assert read_json(work.plan) is None
    work.plan.mkdir()  # which is trouble, and no reason to drop what was done
    with pytest.raises(StorageError, match=r"plan\.json: Is a directory"):
        work.read_plan()


def test_a_unit_is_done_where_its_record_is_of_this_plan_and_its_table_whole(
    tmp_path: Path,
) -> None:
    work = WorkFolder(tmp_path)
    work.units.mkdir(parents=True)
    work.digest = "this plan"
    assert (work.read(0), work.done()) == (None, [])
    a_unit(work, 0, "this plan")
    a_unit(work, 7, "another plan")
    (work.units / "notes.json").touch()
    found = work.read(0)
    assert found is not None
    assert (found[0].unit, found[0].train, len(found[1])) == (0, (4, 1), 0)
    assert work.read(7) is None
    assert sorted(work.done()) == [0, 7]
    assert work.has(0, "train", (4, 99))
    assert not work.has(0, "train", (5, 1))
    assert not work.has(0, "val", (0, 0))
    (work.units / "000000.documents").write_bytes(bytes(23))
    assert work.read(0) is None
    for unit in (0, 0, 99):
        work.forget(unit)
    assert work.done() == [7]


def a_shard(out: Path, number: int) -> ShardRecord:
    files = []
    for ending in ("bin", "crc32", "ends"):
        path = out / f"text_train_{number:06d}.{ending}"
        path.write_bytes(f"{ending} of {number}".encode())
        size, digest = path.stat().st_size, sha256_file(path)
        files.append(FileRecord(name=path.name, bytes=size, sha256=digest))
    return ShardRecord(
        tokens=5, documents=1, largest_id=3, file=files[0], checksums=files[1], ends=files[2]
    )


@pytest.mark.parametrize("ending", ["bin", "crc32", "ends", "json"])
@pytest.mark.parametrize("damage", ["gone", "cut off", "flipped"])
def test_shards_are_good_up_to_the_first_that_is_not(
    ending: str,
    damage: str,
    tmp_path: Path,
) -> None:
    work = WorkFolder(tmp_path)
    work.shards.mkdir(parents=True)
    shards = [a_shard(tmp_path, number) for number in range(4)]
    for shard in shards:
        work.record_shard(shard)
    (tmp_path / "text_train_000009.bin").touch()  # begun, and never recorded
    others = [tmp_path / "text_val_000000.bin", tmp_path / "text_train_notes.md"]
    for path in others:
        path.touch()
    assert work.good_shards("text", "train") == shards
    assert work.good_shards("text", "train") == shards
    assert not (tmp_path / "text_train_000009.bin").exists()
    folder = work.shards if ending == "json" else tmp_path
    path = folder / f"text_train_000002.{ending}"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(
            data[:-1] if damage == "cut off" else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        )
    assert work.good_shards("text", "train") == shards[:2]
    left = {f"text_train_{n:06d}.{end}" for n in (0, 1) for end in ("bin", "crc32", "ends")}
    assert {path.name for path in tmp_path.glob("text_train_0*")} == left
    assert {path.name for path in work.shards.iterdir()} == {
        "text_train_000000.json",
        "text_train_000001.json",
    }
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("in_order", [False, True])
def test_after_fresh_and_a_power_cut_nothing_of_the_old_run_is_gone_on_with(
    in_order: bool,
    tmp_path: Path,
) -> None:
    """Neither its vocabulary nor a shard, of which the names may come back with the power."""
    old = write_jsonl(tmp_path / "old.jsonl", [f"old text {n}" for n in range(300)])
    new = write_jsonl(tmp_path / "new.jsonl", [f"another {n}" for n in range(300)])
    options: dict[str, Any] = {"tokenizer": "char", "val_fraction": 0.3, "workers": 1}

    class Stopped(Exception):
        pass

    def stop(what: str, done: int, total: int, tokens: int) -> None:
        if (what, done) == ("tokens", total):
            raise Stopped

    disk = FailingDisk()
    operations: list[Operation] = []

    def note(what: str, done: int, total: int, tokens: int) -> None:
        operations[:] = operations or (disk.operations if what == "tokens" else [])

    root = tmp_path / "disk"
    with pytest.raises(Stopped):
        build("text", root / "out", [old], progress=stop, shard_tokens=500, **options)
    cut = PowerCut(root)
    with disk.watch():
        build("text", root / "out", [new], fresh=True, progress=note, **options)
    done = 0
    for operation in operations:
        cut.replay([operation])
        for seed in range(4):
            state = tmp_path / f"state-{done}"
            cut.put(state, Random(seed), in_order)
            plan = WorkFolder(state / "out").read_plan()[0]
            if plan and plan["sources"][0]["files"][0]["name"] == "new.jsonl":
                done += 1
                build("text", state / "out", [new], **options)
                assert hashes(state / "out") == hashes(root / "out")
            else:
                shutil.rmtree(state)
    assert done > 5
