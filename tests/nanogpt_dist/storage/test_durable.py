"""Single files: whole or absent, and failures in one line."""

import errno
import hashlib
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.errors import MAX_LINE, BadDataError, StorageError
from nanogpt_dist.storage import durable
from nanogpt_dist.storage.durable import fsync_and_hash
from tests.faults.disk import FailingDisk


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for data in (b"one", b"", b"three" * 10_000):
        storage.write_atomic(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
        assert storage.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert os.listdir(tmp_path) == ["file"]


@given(data=st.binary(min_size=1), pieces=st.integers(1, 7))
def test_write_new_survives_short_writes(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    pieces: int,
) -> None:
    path, write = tmp_path_factory.mktemp("short") / "file", os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda fd, rest: write(fd, rest[:pieces]))
        durable.write_new(path, data)
    assert path.read_bytes() == data


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    storage.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "other").read_text() == "mine"
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "file", b"")


def test_errors_name_the_file_the_reason_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match="nowhere/file: No such file or directory; check the disk"
    ) as error:
        storage.write_atomic(tmp_path / "nowhere" / "file", b"")
    assert isinstance(error.value.__cause__, FileNotFoundError)
    for number, what in ((errno.ENOSPC, "disk full"), (errno.EDQUOT, "quota used up")):
        full = rf"{what}: .* needs at least 1,234,567 bytes, [0-9,]+ are free; make room"
        with (
            pytest.raises(StorageError, match=full) as error,
            durable.storage_errors(tmp_path / ("x" * 200), needed=1_234_567),
        ):
            raise OSError(number, os.strerror(number))
        assert len(str(error.value)) < MAX_LINE
    with (
        pytest.raises(StorageError, match="type ulimit -f unlimited, then run") as error,
        durable.storage_errors(tmp_path / ("x" * 200)),
    ):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert len(str(error.value)) < MAX_LINE
    with pytest.raises(StorageError, match="No such file"):
        storage.sha256_file(tmp_path / "nothing")


def test_a_disk_without_inodes_is_told_from_one_without_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = SimpleNamespace(f_bfree=9, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: numbers)
    no_files, no_bytes = "disk full: no more files may be made at", "are free; make room"
    # all files that may be, of these free, bytes free; 0 of 0 files: the disk has no such limit
    for files, free, room, told in (
        (9, 0, 9, no_files),
        (1, 0, 1, no_files),
        (0, 0, 9, no_bytes),
        (9, 1, 9, no_bytes),
        (9, 0, 0, no_bytes),
    ):
        numbers.f_files, numbers.f_favail, numbers.f_bavail = files, free, room
        with pytest.raises(StorageError, match=told), durable.storage_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "full")


def test_a_full_disk_that_does_not_answer_is_told_as_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "statvfs", silent)
    told = "disk full: .*x, nobody knows how many are free; make room"
    with pytest.raises(StorageError, match=told), durable.storage_errors(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(StorageError, match="x: Input/output error; check the disk"):
        storage.require_room(tmp_path / "x", 1)


def test_a_long_path_is_shown_by_its_end() -> None:
    whole = Path("a" * durable.SHOWN)
    assert durable.shown(whole) == str(whole)
    longer = durable.shown(Path("ab" * durable.SHOWN))
    assert len(longer) == durable.SHOWN
    assert longer.startswith("…")
    assert longer.endswith("abab")
    assert durable.printable(os.fsdecode(b"a\xff")) == "a\\xff"


def test_a_small_file_is_read_up_to_its_bound_and_no_longer_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert durable.read_small(tmp_path / "file", 3) == b"abc"
    with pytest.raises(BadDataError, match="file is longer than 2 bytes"):
        durable.read_small(tmp_path / "file", 2)
    with open(tmp_path / "file", "r+b") as file:
        file.truncate(64 << 20)  # sparse
    assert len(durable.read_small(tmp_path / "file")) == 64 << 20
    with open(tmp_path / "file", "r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(BadDataError, match="longer than 67,108,864 bytes"):
        durable.read_small(tmp_path / "file")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_new_files_have_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        storage.write_atomic(tmp_path / "whole", b"x")
        assert durable.usual_mode(tmp_path / "usual") == 0o666 & ~mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == 0o666 & ~mask
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OSError, match="symbolic link"):
        durable.usual_mode(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/dev/fd")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="is not a regular file"):
            durable.open_plain(other)
    storage.make_folder(tmp_path / "a" / "b")
    storage.write_atomic(tmp_path / "file", b"x")
    durable.usual_mode(tmp_path / "file")
    storage.fsync_and_hash(tmp_path / "file")
    durable.copy_atomic(tmp_path / "file", tmp_path / "copy")
    assert os.listdir("/dev/fd") == before


def test_a_folder_is_made_durably_also_where_another_process_makes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = FailingDisk()
    with disk.watch():
        storage.make_folder(tmp_path / "a" / "b")
    made = [str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert [path for kind, path in disk.operations if kind == "mkdir"] == made
    assert [path for kind, path in disk.operations if kind == "fsync"] == [str(tmp_path), made[0]]

    def meanwhile(path: Path) -> None:
        (tmp_path / "x" / "y").mkdir(exist_ok=True)

    monkeypatch.setattr(durable, "fsync_folder", meanwhile)
    storage.make_folder(tmp_path / "x" / "y" / "z")
    assert (tmp_path / "x" / "y" / "z").is_dir()


def test_a_large_file_is_copied_whole_before_it_is_made_durable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = random.Random(0).randbytes((8 << 20) + 1234)
    (tmp_path / "file").write_bytes(data)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    durable.copy_atomic(tmp_path / "file", tmp_path / "copy")
    assert synced[0] == len(data)
    assert len(synced) == 2  # then its name
    assert (tmp_path / "copy").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["copy", "file"]


def test_a_write_that_fails_says_why_where_its_rest_cannot_be_removed_either(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "file").mkdir()  # in the way
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StorageError, match="file: Is a directory"):
        storage.write_atomic(tmp_path / "file", b"x")


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert storage.free_bytes(tmp_path / "a" / "b") > 0


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = tmp_path / "a" / "b"
    storage.require_room(later, 1)
    with pytest.raises(StorageError, match=r"disk full: .*b needs at least .* are free; make room"):
        storage.require_room(later, 2**62)
    numbers = SimpleNamespace(f_blocks=100, f_bfree=10, f_bavail=5, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: numbers)
    for user, free in ((0, 10_000), (1000, 5000)):  # the rest is reserved for root
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert storage.has_room(later, free)
        assert not storage.has_room(later, free + 1)
    numbers.f_blocks = numbers.f_bfree = numbers.f_bavail = 0  # as some network's disks say
    assert storage.has_room(later, 1)


def test_the_storage_code_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, nanogpt_dist.storage; sys.exit(bool({'torch', 'numpy', 'pydantic'} & "
        "set(sys.modules)))"
    )
    root = str(Path(__file__).parents[3])
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}
        ).returncode
        == 0
    )


def test_what_is_hashed_is_on_the_disk(tmp_path: Path) -> None:
    """Each rank sees to its own files: another machine's fsync does not write them."""
    (tmp_path / "a").write_bytes(b"abc")
    disk = FailingDisk()
    with disk.watch():
        assert fsync_and_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert disk.operations == [("fsync", str(tmp_path / "a"))]
    with pytest.raises(StorageError, match="No such file"):
        fsync_and_hash(tmp_path / "nothing")
