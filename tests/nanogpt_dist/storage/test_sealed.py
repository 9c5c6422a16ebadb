"""Sealed folders: every byte is vouched for, and a good folder is never overwritten."""

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
from nanogpt_dist.errors import MAX_LINE, BadDataError, MissingInputError, StorageError
from nanogpt_dist.storage.manifest import NAME
from nanogpt_dist.storage.sealed import wait_for
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
