"""A data folder whose files all have the sha256 of its manifest, and yet do not fit together; and
that each MiB is checked once, when it is touched.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.importing import import_shards
from nanogpt_dist.errors import BadDataError
from tests.nanogpt_dist.data.test_importing import write_llm_c, write_raw
from tests.nanogpt_dist.data.test_manifest import Content, content_of, write
from tests.nanogpt_dist.data.test_shards import write_folder

MIB_OF_IDS = 1 << 19  # of two bytes each


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train: shards of 6, 6 and 3 ids; val: one of 5, of one document each."""
    path = tmp_path / "mine"
    write_folder(path, np.arange(15), np.arange(5), tokenizers.byte(), 6)
    return path


def replace_file(folder: Path, record: Content, data: bytes) -> None:
    """Put other bytes into a file, and their size and sha256 into its record."""
    (folder / record["name"]).write_bytes(data)
    record.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def edit(folder: Path, change: Callable[[Content], None]) -> None:
    content = content_of(folder)
    change(content)
    write(folder, content)


def read_all(folder: Path) -> None:
    data = DataFolder.open(folder)
    for split in data.splits.values():
        split.read(0, split.tokens)
        split.document_ends()


@pytest.mark.parametrize(
    "ends", [[4, 2, 5], [2, 4, 6], [2**63 + 1, 4, 5], [2, 5], [2, 3, 4, 5]], ids=str
)
def test_ends_that_are_none_of_their_shard_are_refused(tmp_path: Path, ends: list[int]) -> None:
    """Falling, behind the shard, below 0; of other numbers of documents than the manifest has."""
    for name in ("train.bin", "val.bin"):
        write_raw(tmp_path / name, np.array([1, 256, 2, 256, 3]))
    import_shards([tmp_path], "byte")
    assert DataFolder.open(tmp_path).split("val").document_ends().tolist() == [2, 4, 5]

    def change(content: Content) -> None:
        [shard] = content["splits"]["val"]["shards"]
        replace_file(tmp_path, shard["ends"], np.array(ends, "<u8").tobytes())

    edit(tmp_path, change)
    with pytest.raises(BadDataError, match=r"val\.ends: not the document ends of its shard"):
        read_all(tmp_path)


@pytest.mark.parametrize("crcs", [[], [0, 0]], ids=str)
def test_a_shard_needs_a_checksum_for_each_mib(folder: Path, crcs: list[int]) -> None:
    def change(content: Content) -> None:
        [shard] = content["splits"]["val"]["shards"]
        replace_file(folder, shard["checksums"], np.array(crcs, "<u4").tobytes())

    edit(folder, change)
    with pytest.raises(BadDataError, match=r"mine_val_000000\.bin has not a checksum for each MiB"):
        DataFolder.open(folder)


def test_a_tokenizer_that_was_written_anew_is_refused(folder: Path) -> None:
    """Its tokens are the same; who knows what else is not."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    with pytest.raises(BadDataError, match=r"tokenizer\.json has .* bytes, expected"):
        DataFolder.open(folder)


@pytest.mark.parametrize("wrong", [{"n_vocab": 258}, {"eot_id": None}, {"eot_id": 0}], ids=str)
def test_a_manifest_that_has_another_vocabulary_is_refused(
    folder: Path, wrong: dict[str, Any]
) -> None:
    edit(folder, lambda content: content["tokenizer"].update(wrong))
    with pytest.raises(
        BadDataError, match=r"tokenizer\.json has 257 ids, .* or another end of text"
    ):
        DataFolder.open(folder)


@pytest.mark.parametrize("form", [write_raw, write_llm_c])
def test_ids_that_the_vocabulary_lacks_are_refused_in_shards_without_our_header(
    form: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    for name in ("train.bin", "val.bin"):
        form(tmp_path / name, np.array([7, 256, 8]))
    import_shards([tmp_path], "byte")
    read_all(tmp_path)

    def largest(value: int) -> Callable[[Content], None]:
        return lambda content: content["splits"]["val"]["shards"][0].update(largest_id=value)

    edit(tmp_path, largest(257))
    with pytest.raises(BadDataError, match=r"val\.bin: its header and manifest.json disagree"):
        DataFolder.open(tmp_path)
    edit(tmp_path, largest(255))  # what is read is not above it, lest it wrap
    with pytest.raises(BadDataError, match=r"val\.bin is damaged in MiB 0"):
        read_all(tmp_path)
    edit(tmp_path, largest(256))
    read_all(tmp_path)


def test_a_shard_of_llm_c_whose_header_counts_other_ids_is_refused(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        write_llm_c(tmp_path / name, np.array([7, 256, 8]))
    import_shards([tmp_path], "byte")

    def change(content: Content) -> None:
        [shard] = content["splits"]["val"]["shards"]
        data = bytearray((tmp_path / "val.bin").read_bytes())
        data[8] = 2
        replace_file(tmp_path, shard["file"], bytes(data))

    edit(tmp_path, change)
    with pytest.raises(BadDataError, match=r"val\.bin: its header and manifest.json disagree"):
        DataFolder.open(tmp_path)


def test_each_mib_is_checked_once_and_none_before_it_is_touched(tmp_path: Path) -> None:
    ids = np.arange(3 * MIB_OF_IDS) % 257
    write_folder(tmp_path / "a", ids, ids[:5], tokenizers.byte(), 3 * MIB_OF_IDS)
    train = DataFolder.open(tmp_path / "a").split("train")
    [shard] = train._shards
    assert shard.verified.tolist() == [False, False, False]
    train.read(MIB_OF_IDS, MIB_OF_IDS)
    assert shard.verified.tolist() == [False, True, False]
    train.read(MIB_OF_IDS - 1, 1)
    assert shard.verified.tolist() == [True, True, False]
    train.read(2 * MIB_OF_IDS - 1, 2)
    assert shard.verified.tolist() == [True, True, True]
    assert np.array_equal(train.read(0, len(ids)), ids)
