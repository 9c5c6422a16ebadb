"""`verify_folder`: a flipped bit or a cut is pinned on the file that has it, and nothing of it can
be trained on.
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, Manifest, verify_folder
from nanogpt_dist.data.files import OpenFiles
from nanogpt_dist.data.verify import _ranges, unlisted_files
from nanogpt_dist.errors import BadDataError, MissingInputError
from tests.nanogpt_dist.data.test_shards import write_folder

BYTE = tokenizers.byte()
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train: shards of 600,000 ids, so 2 MiB blocks, and 1,000 ids; val: 500 ids."""
    ids = np.random.default_rng(1).integers(0, 257, 601_000).astype(np.uint16)
    write_folder(tmp_path / "mine", ids, ids[:500], BYTE, 600_000)
    return tmp_path / "mine"


def read_all(path: Path) -> None:
    data = DataFolder.open(path)
    for split in data.splits.values():
        split.read(0, split.tokens)
        split.document_ends()


def flip(path: Path, where: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ (1 << bit)]))


def test_1000_flipped_bits_are_named_and_none_is_trained_on(folder: Path) -> None:
    rng, seen = random.Random(11), Counter[str]()
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    for _ in range(1000):
        path = rng.choice(files)
        header = path.suffix == ".bin" and rng.random() < 0.5
        where, bit = rng.randrange(1024 if header else path.stat().st_size), rng.randrange(8)
        flip(path, where, bit)
        [(name, reason)] = verify_folder(folder)
        assert name == path.name, reason
        if path.suffix == ".bin":
            block = (where - 1024) // MIB
            assert reason.startswith(
                "damaged in header" if where < 1024 else f"damaged in MiB {block} of "
            ), reason
        with pytest.raises(BadDataError) as caught:
            read_all(folder)
        assert path.stem in str(caught.value)
        assert len(str(caught.value)) <= 200
        flip(path, where, bit)
        seen["header" if where < 1024 and path.suffix == ".bin" else path.suffix] += 1
    assert verify_folder(folder) == []
    assert min(seen.values()) > 50, seen
    assert set(seen) == {"header", ".bin", ".crc32", ".ends", ".json"}


def test_200_truncations_are_named_and_none_is_trained_on(folder: Path) -> None:
    rng = random.Random(12)
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    for _ in range(200):
        path = rng.choice(files)
        good = path.read_bytes()
        cut = rng.randrange(len(good))
        os.truncate(path, cut)
        [(name, reason)] = verify_folder(folder)
        assert name == path.name
        if name != "manifest.json":
            assert f"has {cut:,} bytes, expected {len(good):,}" in reason
        with pytest.raises(BadDataError, match=path.stem):
            DataFolder.open(folder)
        path.write_bytes(good)
    assert verify_folder(folder) == []


def test_each_damaged_mib_is_named(folder: Path) -> None:
    shard = folder / "mine_train_000000.bin"
    flip(shard, 1024 + 5, 0)
    flip(shard, 1024 + MIB, 0)
    flip(shard, 9, 1)
    assert verify_folder(folder) == [(shard.name, "damaged in header and MiB 0-1 of 2")]
    flip(folder / "mine_train_000000.crc32", 0, 0)
    flip(folder / "mine_val_000000.bin", 1100, 0)
    assert verify_folder(folder, threads=1) == [
        (shard.name, "damaged, where cannot be told: mine_train_000000.crc32 is bad too"),
        ("mine_train_000000.crc32", "its sha256 is not the one in manifest.json"),
        ("mine_val_000000.bin", "damaged in MiB 0 of 1"),
    ]
    assert _ranges([0, 1, 3, 5, 6, 7]) == "0-1, 3, 5-7"
    assert _ranges(list(range(0, 40, 2))) == "0, 2, 4, 6, 8, 10 and 14 more places"


def test_links_and_missing_files(folder: Path, tmp_path: Path) -> None:
    shard = folder / "mine_train_000000.bin"
    shard.rename(tmp_path / "elsewhere")
    assert [(shard.name, True)] == [
        (name, "is missing" in reason) for name, reason in verify_folder(folder)
    ]
    shard.symlink_to(tmp_path / "elsewhere")
    assert [(shard.name, True)] == [
        (name, "symbolic link" in reason) for name, reason in verify_folder(folder)
    ]
    (folder / "manifest.json").unlink()
    [(_, reason)] = verify_folder(folder)
    assert "run the same nanogpt prepare again" in reason
    with pytest.raises(MissingInputError):
        verify_folder(tmp_path / "nothing")


def test_progress_counts_every_byte_and_what_is_not_listed_is_told(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    verify_folder(folder, lambda done, total: calls.append((done, total)))
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    (folder / "notes.txt").write_text("mine")
    assert unlisted_files(folder, Manifest.read(folder)[0]) == ["notes.txt"]


def test_few_shards_are_open_at_a_time_and_all_can_be_read(tmp_path: Path) -> None:
    ids = np.random.default_rng(2).integers(0, 257, 3000).astype(np.uint16)
    write_folder(tmp_path / "d", ids, ids[:10], BYTE, 10)  # 300 shards
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    data = DataFolder.open(tmp_path / "d")
    assert np.array_equal(data.split("train").read(0, 3000), ids)
    assert np.array_equal(data.split("train").read(0, 3000), ids)
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 64
        del data
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_held_outlives_its_place_among_the_open_ones(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    files = OpenFiles(limit=1)
    held = files.get(tmp_path / "a")
    assert files.get(tmp_path / "b").pread(9, 0) == b"b"
    assert len(files) == 1
    assert held.pread(9, 0) == b"a"


def test_a_shard_that_was_replaced_is_checked_anew(folder: Path, tmp_path: Path) -> None:
    data = DataFolder.open(folder)
    train = data.split("train")
    first = train.read(0, 10)
    shard = folder / "mine_train_000000.bin"
    shutil.copy(shard, tmp_path / "copy")
    os.replace(tmp_path / "copy", shard)
    train._shards[0]._files.limit = 1  # push it out
    train.read(600_000, 1)
    assert np.array_equal(train.read(0, 10), first)
    shutil.copy(shard, tmp_path / "copy")
    flip(tmp_path / "copy", 1030, 3)
    os.replace(tmp_path / "copy", shard)
    train.read(600_000, 1)
    with pytest.raises(BadDataError, match=f"{shard.name} is damaged in MiB 0"):
        train.read(0, 10)
