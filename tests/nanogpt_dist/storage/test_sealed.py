"""Sealed folders: every byte is vouched for, and a good folder is never overwritten."""

import errno
import hashlib
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.errors import (
    MAX_LINE,
    BadDataError,
    CannotCreateError,
    MissingInputError,
    StorageError,
)
from nanogpt_dist.storage.manifest import NAME
from nanogpt_dist.storage.sealed import set_aside, wait_for
from tests.faults.disk import FailingDisk
from tests.nanogpt_dist.storage.conftest import FILES, fill


def test_what_was_put_in_comes_out(folder: Path) -> None:
    manifest = storage.read_manifest(folder)
    assert manifest["step"] == 7
    assert manifest["loss"] == 1.5
    assert manifest["files"] == [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(FILES.items())
    ]
    assert list(manifest)[-1] == "sha256"
    assert storage.verify(folder) == []
    storage.require_good(folder)


def test_equal_content_gives_equal_manifests(folder: Path, tmp_path: Path) -> None:
    again = storage.commit(tmp_path / "elsewhere", "step-00000007", fill, {"step": 7, "loss": 1.5})
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_every_flipped_bit_is_named(folder: Path) -> None:
    draw = random.Random(0)
    for file in ("manifest.json", "model.safetensors", "state.json"):
        whole = (folder / file).read_bytes()
        bits = range(8 * len(whole))
        for bit in draw.sample(bits, min(400, len(bits))):
            bad = bytearray(whole)
            bad[bit // 8] ^= 1 << bit % 8
            (folder / file).write_bytes(bad)
            assert [name for name, _ in storage.verify(folder)] == [file], (file, bit)
        (folder / file).write_bytes(whole)
    assert storage.verify(folder) == []


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "state.json"])
def test_a_cut_or_zeroed_file_is_named(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    cuts = range(len(whole)) if len(whole) < 50 else random.Random(0).sample(range(len(whole)), 100)
    for cut in cuts:
        for bad in (whole[:cut], whole[:cut] + bytes(len(whole) - cut), whole + b"\0"):
            (folder / file).write_bytes(bad)
            assert [name for name, _ in storage.verify(folder)] == [file]


def test_missing_extra_and_linked_files_are_named(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "extra").write_text("?")
    shutil.copy(folder / "state.json", folder.parent / "twin")
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(folder.parent / "twin")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert storage.verify(folder) == [
        ("empty", "is missing"),
        ("model.safetensors", "is not a regular file"),
        ("state.json", "is a symbolic link"),
        ("extra", "is not in the manifest"),
    ]
    with pytest.raises(
        BadDataError, match=r"step-00000007: empty is missing \(and 3 more\); name another step"
    ) as error:
        storage.require_good(folder)
    assert len(str(error.value)) < MAX_LINE


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert storage.verify(tmp_path / "nowhere") == [("manifest.json", "is missing")]
    assert storage.verify(tmp_path) == [("manifest.json", "is missing")]
    with pytest.raises(MissingInputError, match="nowhere is not a folder"):
        storage.require_good(tmp_path / "nowhere")
    for name in ("", ".", ".."):
        with pytest.raises(CannotCreateError, match="is no name for a new folder"):
            storage.begin(tmp_path, name)
    assert os.listdir(tmp_path) == []


def test_one_bad_file_is_named_alone_and_of_more_the_first(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"")
    alone = r"step-00000007: state\.json has 0 bytes instead of 11; name another"
    with pytest.raises(BadDataError, match=alone):
        storage.require_good(folder)
    (folder / "empty").unlink()
    with pytest.raises(BadDataError, match=r"empty is missing \(and 1 more\); name another"):
        storage.require_good(folder)


def test_files_that_another_machine_sees_late_are_waited_for(folder: Path, tmp_path: Path) -> None:
    late = tmp_path / "late" / folder.name
    late.mkdir(parents=True)

    def appear() -> None:
        for name in ["manifest.json", *FILES]:
            time.sleep(0.15)
            shutil.copy(folder / name, late / name)

    other = threading.Thread(target=appear)
    other.start()
    wait_for(late)
    assert storage.verify(late) == []
    other.join()
    (late / next(iter(FILES))).unlink()
    wait_for(late, seconds=0.3)


def test_a_good_folder_is_never_overwritten(folder: Path) -> None:
    before = (folder / "manifest.json").stat()
    again = storage.commit(folder.parent, folder.name, lambda staging: None, {})
    assert again == folder
    assert (folder / "manifest.json").stat() == before
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("bad", ["cut", "no folder", "empty folder"])
def test_a_bad_one_of_the_same_name_is_set_aside(folder: Path, bad: str) -> None:
    if bad == "cut":
        (folder / "state.json").write_bytes(b"")
    else:
        shutil.rmtree(folder)
        folder.mkdir() if bad == "empty folder" else folder.write_text("?")
    storage.commit(folder.parent, folder.name, fill, {})
    assert storage.verify(folder) == []
    assert sorted(os.listdir(folder.parent)) == [f".bad-{folder.name}-1", folder.name]


def test_several_writers_may_hash_their_own_files(tmp_path: Path) -> None:
    staging = storage.begin(tmp_path, "step-00000001")
    fill(staging)
    known = {name: storage.sha256_file(staging / name) for name in ("model.safetensors", "empty")}
    assert storage.verify(storage.seal(staging, "step-00000001", {}, known)) == []
    staging = storage.begin(tmp_path, "step-00000002")
    with pytest.raises(StorageError, match=r"rank-3\.bin was written but is not there"):
        storage.seal(staging, "step-00000002", {}, {"rank-3.bin": "0" * 64})
    storage.discard(staging)
    storage.discard(staging)  # twice does no harm
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_what_fill_raises_comes_out_and_nothing_stays(tmp_path: Path) -> None:
    def stopped(staging: Path) -> None:
        fill(staging)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.commit(tmp_path, "step-00000001", stopped, {})
    assert os.listdir(tmp_path) == []


def test_what_fill_cannot_write_is_told_with_what_it_needs(tmp_path: Path) -> None:
    def full(staging: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = "disk full: .*step-00000001 needs at least 1,234 bytes"
    with pytest.raises(StorageError, match=told):
        storage.commit(tmp_path, "step-00000001", full, {}, needed=1234)
    assert os.listdir(tmp_path) == []


def test_what_fill_raises_comes_out_also_where_its_files_cannot_be_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def stopped(staging: Path) -> None:
        monkeypatch.setattr(os, "rmdir", refuse)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.commit(tmp_path, "step-00000001", stopped, {})


def test_a_staging_folder_whose_name_cannot_be_made_durable_is_not_begun(tmp_path: Path) -> None:
    disk = FailingDisk(1, errno.EIO)  # after the mkdir
    with disk.watch(), pytest.raises(StorageError, match="Input/output error"):
        storage.begin(tmp_path, "step-00000001")
    assert disk.failed == ("fsync", str(tmp_path))
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("?")
    with pytest.raises(StorageError, match="file/step-00000001: File exists"):
        storage.begin(tmp_path / "file", "step-00000001")
    with pytest.raises(StorageError, match="step-00000001: No such file"):
        storage.seal(tmp_path / "gone", "step-00000001", {})


@pytest.mark.parametrize("kind", ["create", "rename"])
def test_a_seal_that_fails_is_told_by_the_name_and_leaves_what_was_there(
    kind: str, tmp_path: Path
) -> None:
    staging = storage.begin(tmp_path, "step-00000001")
    fill(staging)
    whole = FailingDisk()
    copy = tmp_path / "copy"
    shutil.copytree(staging, copy)
    with whole.watch():
        storage.seal(copy, "step-00000002", {})
    at = [operation[0] for operation in whole.operations].index(kind)
    disk = FailingDisk(at, errno.ENOSPC)
    size = sum(map(len, FILES.values()))
    with (
        disk.watch(),
        pytest.raises(StorageError, match=f"step-00000001 needs at least {size:,} bytes"),
    ):
        storage.seal(staging, "step-00000001", {})
    assert staging.is_dir()
    assert not (tmp_path / "step-00000001").exists()


def test_what_is_set_aside_is_durably_so(folder: Path) -> None:
    disk = FailingDisk()
    with disk.watch():
        aside = set_aside(folder)
    moved = ("rename", str(folder), str(aside))
    assert disk.operations == [moved, ("fsync", str(folder.parent))]


def test_a_listing_that_fails_says_nothing_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.verify(folder)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) < 200),
        st.binary(),
        max_size=4,
    )
)
def test_any_files_are_sealed_and_any_change_is_seen(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
) -> None:
    files.pop("manifest.json", None)

    def put(staging: Path) -> None:
        for name, data in files.items():
            (staging / name).write_bytes(data)

    folder = storage.commit(tmp_path_factory.mktemp("any"), "x", put, {})
    assert storage.verify(folder) == []
    for name, data in files.items():
        (folder / name).write_bytes(data + b"!")
    assert [name for name, _ in storage.verify(folder)] == sorted(files)
