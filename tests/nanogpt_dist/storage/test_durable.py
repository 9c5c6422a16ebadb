"""Single files: whole or absent, and failures in one line."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.errors import MAX_LINE, StorageError
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
    with pytest.raises(StorageError, match="No such file"):
        storage.sha256_file(tmp_path / "nothing")


def test_a_disk_without_inodes_is_told_from_one_without_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = SimpleNamespace(f_files=9, f_favail=0, f_bavail=9, f_bfree=9, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: numbers)
    for files, told in ((9, "disk full: no more files may be made at"), (0, "9 are free")):
        numbers.f_files = files
        with pytest.raises(StorageError, match=told), durable.storage_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "full")


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
