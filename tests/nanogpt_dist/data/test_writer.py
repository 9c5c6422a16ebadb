"""Shards as they are written: modes, open files, and what a disk that fails leaves."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import ShardWriter
from nanogpt_dist.errors import StorageError
from tests.faults.disk import FailingDisk

BYTE = tokenizers.byte()
IDS = np.arange(250)


def write(folder: Path) -> ShardWriter:
    """Shards of 150 and 100 ids."""
    with ShardWriter(folder, "x", "val", BYTE, 150) as writer:
        writer.write(IDS[:100], [40, 100])
        writer.write(IDS[100:], [50, 51])
    return writer


def open_files() -> list[str]:
    folder = "/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd"
    return sorted(os.listdir(folder))


def test_files_have_the_usual_mode_and_none_stays_open(tmp_path: Path) -> None:
    before = open_files()
    writer = write(tmp_path)
    assert open_files() == before
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
    assert [record.tokens for record in writer.records] == [150, 100]
    assert [record.documents for record in writer.records] == [3, 1]
    assert [record.largest_id for record in writer.records] == [149, 249]


def test_a_disk_that_fails_leaves_whole_shards_and_no_open_file(tmp_path: Path) -> None:
    """Whichever of its operations fails; and the next try writes what an undisturbed one does."""
    whole = tmp_path / "whole"
    whole.mkdir()
    with (disk := FailingDisk()).watch():
        write(whole)
    content = {path.name: path.read_bytes() for path in whole.iterdir()}
    before = open_files()
    for at in range(disk.count):
        folder = tmp_path / str(at)
        folder.mkdir()
        failing = FailingDisk(at, errno.ENOSPC)
        with failing.watch(), pytest.raises(StorageError, match="disk full"):
            write(folder)
        assert open_files() == before
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        shards = [name for name in found if name.endswith(".bin")]
        for shard in shards:
            for suffix in (".bin", ".crc32", ".ends"):
                name = shard.replace(".bin", suffix)
                assert found[name] == content[name], failing.failed
        assert len(found) == 3 * len(shards), failing.failed
        write(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_what_a_full_disk_lacks_is_told(tmp_path: Path) -> None:
    """The bytes of the shard until then, which the next try needs at least."""
    needed = {"create": [1024], "write": [1024, 1224], "pwrite": [1024]}
    for kind, bytes_each in needed.items():
        for number, size in enumerate(bytes_each):
            with (disk := FailingDisk()).watch():
                write(tmp_path)
            places = [
                at
                for at, operation in enumerate(disk.operations)
                if operation[0] == kind and ".bin" in str(operation[1])
            ]
            with (
                FailingDisk(places[number], errno.ENOSPC).watch(),
                pytest.raises(StorageError, match=f"needs at least {size:,} bytes, "),
            ):
                write(tmp_path)


def test_a_folder_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"x_val_000000\.bin: No such file"):
        write(tmp_path / "nothing")


def test_what_is_written_after_an_abort_is_a_shard_of_its_own(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "x", "val", BYTE, 100)
    writer.write(IDS[:150])
    writer.abort()
    writer.abort()
    assert sorted(os.listdir(tmp_path)) == [
        f"x_val_000000.{end}" for end in ("bin", "crc32", "ends")
    ]
    writer.write(IDS[:7])
    assert [record.tokens for record in writer.close()] == [100, 7]
