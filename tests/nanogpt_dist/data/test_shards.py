"""Shards: llm.c's format, written and read back exactly; no damaged, foreign or mixed-up file goes
unnoticed.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, Manifest, ShardWriter, verify_folder
from nanogpt_dist.data.files import OpenFile
from nanogpt_dist.data.manifest import (
    CorpusRecord,
    CountsRecord,
    FileRecord,
    SplitRecord,
    SplitRuleRecord,
    TokenizerRecord,
)
from nanogpt_dist.errors import BadDataError, MissingInputError, NanogptError, StorageError
from nanogpt_dist.tokenizer import Tokenizer
from tests.conftest import CLONE
from tests.faults.disk import FailingDisk, PowerCut

BYTE = tokenizers.byte()


def write_folder(
    folder: Path,
    train: np.ndarray,
    val: np.ndarray,
    tokenizer: Tokenizer,
    shard_tokens: int,
) -> Manifest:
    """A data folder of two splits, each one document."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    saved = (folder / "tokenizer.json").read_bytes()
    splits = {}
    for name, ids in (("train", train), ("val", val)):
        with ShardWriter(folder, "mine", name, tokenizer, shard_tokens) as writer:
            writer.write(ids, [len(ids)])
        splits[name] = SplitRecord(
            tokens=len(ids), documents=1, bytes=len(ids), shards=writer.records
        )
    manifest = Manifest(
        name="mine",
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            spec="byte",
            n_vocab=tokenizer.n_vocab,
            eot_id=tokenizer.eot_id,
            fingerprint=tokenizer.fingerprint,
            probe=[],
            file=FileRecord(
                name="tokenizer.json", bytes=len(saved), sha256=hashlib.sha256(saved).hexdigest()
            ),
        ),
        eot=None,
        errors="strict",
        max_documents=None,
        max_tokens=None,
        counts=CountsRecord(),
        splits=splits,
        sources=[
            CorpusRecord(
                corpus="text",
                description="d",
                licence="l",
                address=None,
                revision=None,
                column=None,
                weight=None,
                split=SplitRuleRecord(rule="characters", val_fraction=0.1, seed=1),
                tokens=sum(split.tokens for split in splits.values()),
                documents=sum(split.documents for split in splits.values()),
                files=[],
            )
        ],
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 257, 1_300_000).astype(np.uint16)


@pytest.fixture(scope="module")
def folder(ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train: shards of 600,000, 600,000 and 100,000 ids, so of 2, 2 and 1 blocks; val: one of
    5,000.
    """
    path = tmp_path_factory.mktemp("data") / "mine"
    write_folder(path, ids, ids[:5000], BYTE, 600_000)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def read_all(path: Path) -> None:
    data = DataFolder.open(path)
    for split in data.splits.values():
        split.read(0, split.tokens)
        split.document_ends()


def test_llm_c_reads_the_header(folder: Path, ids: np.ndarray) -> None:
    data = (folder / "mine_train_000000.bin").read_bytes()
    words = struct.unpack("<256i", data[:1024])
    assert words[:3] == (20240520, 1, 600_000)
    # version, vocabulary, end of text, largest id, documents
    assert words[3:8] == (1, 257, 256, 256, 0)
    assert len(data) == 1024 + 2 * words[2]
    assert np.array_equal(np.frombuffer(data, "<u2", offset=1024), ids[:600_000])
    assert bytes.fromhex(BYTE.fingerprint) == data[32:64]
    assert hashlib.sha256(data[1024:]).digest() == data[64:96]


def test_large_vocabularies_get_uint32(tmp_path: Path) -> None:
    text = "".join(chr(i) for i in range(0xE000, 0xE000 + 70_000))
    tokenizer = tokenizers.char(text)
    ids = tokenizer.encode(text)
    write_folder(tmp_path / "d", ids, ids[:10], tokenizer, 30_000)
    data = (tmp_path / "d" / "mine_train_000001.bin").read_bytes()
    assert struct.unpack("<3i", data[:12]) == (20240801, 7, 30_000)
    assert len(data) == 1024 + 4 * 30_000
    assert np.array_equal(DataFolder.open(tmp_path / "d").split("train").read(0, 70_000), ids)


def test_what_a_folder_tells(folder: Path, ids: np.ndarray) -> None:
    data = DataFolder.open(folder)
    train, val = data.split("train"), data.split("val")
    assert (train.tokens, val.tokens, train.n_vocab) == (1_300_000, 5_000, 257)
    assert data.dataset_id == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert data.tokenizer.fingerprint == BYTE.fingerprint
    assert train.document_ends().tolist() == [1_300_000]
    assert verify_folder(folder) == []
    assert {p.suffix for p in folder.iterdir()} == {".bin", ".crc32", ".ends", ".json"}


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 1_299_999), length=st.integers(0, 700_000))
def test_any_part_reads_back(folder: Path, ids: np.ndarray, start: int, length: int) -> None:
    length = min(length, 1_300_000 - start)
    part = DataFolder.open(folder).split("train").read(start, length)
    assert part.dtype == np.uint16
    assert part.flags.writeable
    assert np.array_equal(part, ids[start : start + length])


def test_reading_outside_of_the_split_is_an_error(folder: Path) -> None:
    val = DataFolder.open(folder).split("val")
    for start, length in ((-1, 2), (4_999, 2), (0, 5_001), (0, -1)):
        with pytest.raises(IndexError):
            val.read(start, length)


@settings(max_examples=15, deadline=None)
@given(
    documents=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 1200), max_size=6),
    shard_tokens=st.integers(1, 300),
)
def test_files_do_not_depend_on_how_the_stream_arrives(
    documents: list[int],
    cuts: list[int],
    shard_tokens: int,
) -> None:
    ids, ends = np.arange(sum(documents)) % 257, np.cumsum(documents)
    with tempfile.TemporaryDirectory() as name:
        one, other = Path(name, "one"), Path(name, "other")
        one.mkdir(), other.mkdir()
        with ShardWriter(one, "x", "train", BYTE, shard_tokens) as writer:
            writer.write(ids, ends)
        with ShardWriter(other, "x", "train", BYTE, shard_tokens) as again:
            borders = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
            for start, stop in pairwise(borders):
                again.write(ids[start:stop], ends[(ends > start) & (ends <= stop)] - start)
        assert writer.records == again.records
        files = sorted(os.listdir(one))
        assert files == sorted(os.listdir(other))
        assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
        sizes = [record.tokens for record in writer.records]
        assert sum(sizes) == len(ids)
        assert all(size == shard_tokens for size in sizes[:-1])
        assert sum(record.documents for record in writer.records) == len(documents)


def test_the_largest_id_may_be_the_first(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "x", "val", BYTE) as writer:
        writer.write(np.zeros(3, np.int64), [3])
    [record] = writer.records
    assert (record.largest_id, record.tokens, record.documents) == (0, 3, 1)


@pytest.mark.parametrize("wrong", [257, 65_536, 65_537, -1, 2**40])
def test_ids_outside_of_the_vocabulary_are_not_written(tmp_path: Path, wrong: int) -> None:
    def write() -> None:
        with ShardWriter(tmp_path, "x", "val", BYTE) as writer:
            writer.write(np.array([1, 2]))
            writer.write(np.array([3, wrong]))

    with pytest.raises(BadDataError, match=f"id {wrong} is outside"):
        write()
    assert os.listdir(tmp_path) == []


def test_truncation_is_named(copy: Path) -> None:
    rng = random.Random(3)
    for path in sorted(copy.iterdir()):
        good = path.read_bytes()
        for _ in range(15 if good else 0):  # no document ends in the first shard
            path.write_bytes(good[: rng.randrange(len(good))])
            with pytest.raises(NanogptError, match=path.name):
                DataFolder.open(copy)
            assert any(path.name in f"{file}{reason}" for file, reason in verify_folder(copy))
        path.write_bytes(good + b"\0")
        with pytest.raises(NanogptError, match=path.name):
            DataFolder.open(copy)
        path.write_bytes(good)
    assert verify_folder(copy) == []


def test_flipped_bits_are_named(copy: Path) -> None:
    rng = random.Random(4)
    for path in sorted(copy.iterdir()):
        good = path.read_bytes()
        for _ in range(12 if good else 0):
            where = (
                rng.randrange(min(len(good), 1100))
                if rng.random() < 0.5
                else rng.randrange(len(good))
            )
            with path.open("r+b") as file:
                file.seek(where)
                file.write(bytes([good[where] ^ (1 << rng.randrange(8))]))
            with pytest.raises(BadDataError, match=path.name) as caught:
                read_all(copy)
            assert len(str(caught.value)) < 200
            assert verify_folder(copy)
            path.write_bytes(good)


def test_only_what_is_touched_is_hashed(copy: Path, ids: np.ndarray) -> None:
    path = copy / "mine_train_000001.bin"
    data = bytearray(path.read_bytes())
    data[1024 + (1 << 20) + 5] ^= 1  # in the second MiB of ids
    path.write_bytes(data)
    train = DataFolder.open(copy).split("train")
    assert np.array_equal(train.read(0, 1_000_000), ids[:1_000_000])
    with pytest.raises(BadDataError, match=r"mine_train_000001.bin is damaged in MiB 1"):
        train.read(600_000 + (1 << 19), 1)
    assert verify_folder(copy) == [("mine_train_000001.bin", "damaged in MiB 1 of 2")]


def test_a_shard_that_is_cut_off_while_it_is_read_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = DataFolder.open(copy).split("train")
    split.read(0, 10)  # its first MiB is checked
    pread = OpenFile.pread
    monkeypatch.setattr(OpenFile, "pread", lambda *given: pread(*given)[:-2])
    with pytest.raises(BadDataError, match=r"mine_train_000000\.bin was cut off while open"):
        split.read(0, 2)


def test_missing_files(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="type: nanogpt prepare"):
        DataFolder.open(tmp_path / "nothing")
    for name in sorted(os.listdir(copy)):
        (copy / name).rename(tmp_path / "aside")
        message = "run the same nanogpt prepare again" if name == "manifest.json" else name
        with pytest.raises(BadDataError, match=message):
            DataFolder.open(copy)
        (tmp_path / "aside").rename(copy / name)


def test_shards_of_another_tokenizer_are_refused(copy: Path, tmp_path: Path) -> None:
    other = Tokenizer("other", "bpe", BYTE.tokens)  # as many ids, end of text at the same place
    other.save(copy / "tokenizer.json")
    with pytest.raises(BadDataError, match=r"is tokenizer other .* not byte"):
        DataFolder.open(copy)
    BYTE.save(copy / "tokenizer.json")
    ids = np.arange(5000) % 257
    write_folder(tmp_path / "other", ids, ids, other, 600_000)
    for suffix in ("bin", "crc32", "ends"):
        shutil.copy(tmp_path / "other" / f"mine_val_000000.{suffix}", copy)
    assert verify_folder(copy)
    with pytest.raises(BadDataError, match="mine_val_000000"):
        DataFolder.open(copy)


def test_swapped_shards_are_refused(copy: Path) -> None:
    one, two = copy / "mine_train_000000.bin", copy / "mine_train_000001.bin"
    one.rename(copy / "aside")
    two.rename(one)
    (copy / "aside").rename(two)
    with pytest.raises(BadDataError, match=r"mine_train_00000\d"):
        read_all(copy)


def test_edited_manifests_are_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    content = json.loads(path.read_bytes())
    (source,) = content["sources"]
    edits = [
        ({**content, "version": 1}, "version 1"),
        ({**content, "extra": 1}, "extra"),
        ({**content, "counts": {"empty": 1, "replaced": 0, "skipped": 0}}, "edited or damaged"),
        ({**content, "splits": {"train": content["splits"]["train"]}}, "train and val"),
        (
            {
                **content,
                "sources": [{**source, "split": {**source["split"], "val_fraction": 1e999}}],
            },
            "val_fraction",
        ),
        ([], "not the manifest"),
    ]
    for name in ("../tokenizer.json", "/etc/passwd", "..", "a/b", ""):
        file = {**content["tokenizer"]["file"], "name": name}
        edits.append(
            (
                {**content, "tokenizer": {**content["tokenizer"], "file": file}},
                r"tokenizer\.file\.name",
            )
        )
    for edited, message in edits:
        path.write_text(json.dumps(edited))
        with pytest.raises(BadDataError, match=message):
            DataFolder.open(copy)
    path.write_bytes(b"[" * 100_000)
    assert verify_folder(copy)[0][0] == "manifest.json"


def test_links_are_not_followed(copy: Path, tmp_path: Path) -> None:
    shard = copy / "mine_train_000000.bin"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NanogptError, match="mine_train_000000"):
        DataFolder.open(copy)
    shutil.move(tmp_path / "elsewhere", shard)
    (tmp_path / "secret").write_text("no tokenizer")
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BadDataError, match=r"tokenizer\.json is a symbolic link"):
        DataFolder.open(copy)


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")

    def fill() -> None:
        with ShardWriter(disk, "x", "train", BYTE, 200_000) as writer:
            for _ in range(100):
                writer.write(np.zeros(10_000, np.uint16), [10_000])

    try:
        with pytest.raises(StorageError, match=r"needs at least [\d,]+ bytes, [\d,]+ are free"):
            fill()
        assert sorted(p.suffix for p in disk.iterdir()) == [
            ".bin",
            ".bin",
            ".crc32",
            ".crc32",
            ".ends",
            ".ends",
        ]
        assert not [p for p in disk.iterdir() if p.name.startswith(".")]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_power_cut_leaves_whole_shards_or_none(tmp_path: Path) -> None:
    """A shard that has its name is whole, and has its sidecars, whenever the power goes."""
    folder, after, draw = tmp_path / "data", tmp_path / "after", random.Random(1)
    folder.mkdir()
    cut, disk, seen = PowerCut(folder), FailingDisk(), 0
    with disk.watch(), ShardWriter(folder, "x", "val", BYTE, 50) as writer:
        writer.write(np.arange(120), [40, 120])
    for operation in disk.operations:
        cut.replay([operation])
        for _ in range(20):
            cut.put(after, draw)
            for shard in after.glob("*.bin"):
                seen += 1
                for suffix in (".bin", ".crc32", ".ends"):
                    name = shard.with_suffix(suffix).name
                    assert (after / name).read_bytes() == (folder / name).read_bytes(), name
            shutil.rmtree(after)
    assert seen > 100
    assert len(writer.records) == 3


def test_reading_does_not_import_torch() -> None:
    code = "import sys, nanogpt_dist.data, prepare.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CLONE, check=False).returncode == 0
