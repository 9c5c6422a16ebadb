"""Files of ids that nanoGPT and llm.c wrote: read as their own readers do, checked, and never
copied or changed.
"""

import os
import random
import struct
import subprocess
import sys
import tempfile
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, ShardWriter, verify_folder
from nanogpt_dist.data.foreign import document_ends
from nanogpt_dist.data.importing import choose, import_shards
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    MissingInputError,
    NanogptError,
    UsageError,
)

EOT = 256  # of the byte tokenizer
TEXTS = ["to be", "or", "not to be,", "that is", "the question", "é"]


def llm_c_ids(path: Path) -> np.ndarray:
    """As llm.c's and modded-nanogpt's loaders read a shard, whose rules these are."""
    with path.open("rb") as file:
        magic, version, tokens = struct.unpack("<256i", file.read(1024))[:3]
    width = {(20240520, 1): 2, (20240801, 7): 4}[magic, version]
    assert path.stat().st_size == 1024 + tokens * width
    assert tokens * width + 1024 < 2**31
    ids = np.memmap(path, dtype=f"<u{width}", mode="r", offset=1024)
    assert len(ids) == tokens
    return ids


@pytest.mark.parametrize(("n_vocab", "width"), [(65_535, 2), (65_536, 2), (65_537, 4)])
def test_llm_c_reads_our_shards_whatever_the_vocabulary(
    tmp_path: Path,
    n_vocab: int,
    width: int,
) -> None:
    tokenizer = tokenizers.char("".join(map(chr, range(0xE000, 0xE000 + n_vocab))))
    ids = np.array([0, 1, n_vocab - 1, n_vocab // 2, n_vocab - 1], np.int64)
    with ShardWriter(tmp_path, "x", "train", tokenizer, 3) as writer:
        writer.write(ids, [5])
    shards = sorted(tmp_path.glob("*.bin"))
    assert [path.stat().st_size for path in shards] == [1024 + 3 * width, 1024 + 2 * width]
    assert np.concatenate([llm_c_ids(path) for path in shards]).tolist() == ids.tolist()


def stream(texts: list[str], eot: str) -> np.ndarray:
    parts = []
    for text in texts:
        ids = list(text.encode())
        parts += [*ids, EOT] if eot == "append" else [EOT, *ids]
    return np.array(parts)


def write_raw(path: Path, ids: np.ndarray, width: int = 2) -> Path:
    path.write_bytes(ids.astype(f"<u{width}").tobytes())
    return path


def write_llm_c(path: Path, ids: np.ndarray, width: int = 2) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = (*{2: (20240520, 1), 4: (20240801, 7)}[width], len(ids))
    path.write_bytes(header.tobytes() + ids.astype(f"<u{width}").tobytes())
    return path


def documents_of(folder: Path, split: str) -> list[str]:
    """What the folder says are its documents, end of text included as a |."""
    part = DataFolder.open(folder).split(split)  # type: ignore[arg-type]
    ends = part.document_ends().tolist()
    ids = [part.read(a, b - a) for a, b in zip([0, *ends], ends, strict=False)]
    return ["".join("|" if i == EOT else chr(i) for i in document) for document in ids]


@pytest.mark.parametrize("width", [2, 4])
def test_nanogpts_files_stay_as_they_are_and_end_behind_end_of_text(
    tmp_path: Path,
    width: int,
) -> None:
    ids = stream(TEXTS[:5], "append")
    write_raw(tmp_path / "train.bin", ids, width), write_raw(tmp_path / "val.bin", ids[:4], width)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    folder, manifest = import_shards([tmp_path], "byte", uint32=width == 4)
    assert folder == tmp_path
    assert {
        name: (Path(folder, name).stat().st_ino, Path(folder, name).read_bytes()) for name in before
    } == before
    assert manifest.eot == "append"
    assert documents_of(folder, "train") == [text + "|" for text in TEXTS[:5]]
    assert documents_of(folder, "val") == ["to b"]  # cut off, so without end of text
    assert DataFolder.open(folder).split("train").read(0, len(ids)).tolist() == ids.tolist()
    assert manifest.splits["train"].bytes == len("".join(TEXTS[:5]))
    assert [source.split for source in manifest.sources] == [None]
    assert manifest.sources[0].description == "imported from nanoGPT's raw .bin"
    assert verify_folder(folder) == []


@pytest.mark.parametrize("width", [2, 4])
def test_llm_cs_shards_end_before_end_of_text_and_across_shards(tmp_path: Path, width: int) -> None:
    ids = stream(TEXTS, "prepend")
    write_llm_c(tmp_path / "fw_val_000000.bin", ids[:9], width)
    cuts = [0, 4, 6, 9, 30, len(ids)]  # before an end of text, within documents
    for index, (a, b) in enumerate(pairwise(cuts), 9):  # so that 9 comes before 10
        write_llm_c(tmp_path / f"fw_train_{index}.bin", ids[a:b], width)
    folder, manifest = import_shards([tmp_path], "byte")
    assert manifest.eot == "prepend"
    assert [shard.file.name[9:-4] for shard in manifest.splits["train"].shards] == [
        "9",
        "10",
        "11",
        "12",
        "13",
    ]
    expected = ["|" + text.encode().decode("latin1") for text in TEXTS]
    assert documents_of(folder, "train") == expected
    assert (
        manifest.splits["train"].documents
        == len(TEXTS)
        == sum(s.documents for s in manifest.splits["train"].shards)
    )
    assert manifest.splits["train"].bytes == len("".join(TEXTS).encode())
    assert DataFolder.open(folder).split("train").read(3, 20).tolist() == ids[3:23].tolist()


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    marks=st.lists(st.booleans(), min_size=30, max_size=30),
    eot=st.sampled_from(["append", "prepend", None]),
)
def test_document_ends_are_those_of_the_whole_stream(
    sizes: list[int],
    marks: list[bool],
    eot: str | None,
) -> None:
    total = sum(sizes)
    if eot == "append":
        ends = [i + 1 for i in range(total) if marks[i]]
    else:
        ends = [i for i in range(1, total) if marks[i]] if eot else []
    ends = sorted({*ends, total})
    starts = [0, *accumulate(sizes)]
    eots = [np.flatnonzero(marks[a:b]) for a, b in pairwise(starts)]
    found = document_ends(sizes, eots, eot)  # type: ignore[arg-type]
    assert [
        int(end) + start for part, start in zip(found, starts, strict=False) for end in part
    ] == ends
    assert all(1 <= end <= size for part, size in zip(found, sizes, strict=True) for end in part)


def test_without_any_end_of_text_a_split_is_one_document(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_raw(tmp_path / f"{name}.bin", np.arange(100))
    folder, manifest = import_shards([tmp_path / "train.bin", tmp_path / "val.bin"], "byte")
    assert (manifest.eot, manifest.splits["train"].documents) == (None, 1)
    assert len(documents_of(folder, "val")) == 1


def test_a_large_vocabulary_over_16_bit_ids_and_the_other_way_round(tmp_path: Path) -> None:
    tokenizers.char("".join(map(chr, range(0xE000, 0xE000 + 70_000)))).save(tmp_path / "chars.json")
    (tmp_path / "data").mkdir()
    ids = np.array([3, 65_535, 0])
    write_raw(tmp_path / "data" / "train.bin", ids), write_raw(tmp_path / "data" / "val.bin", ids)
    folder, manifest = import_shards([tmp_path / "data"], str(tmp_path / "chars.json"))
    assert DataFolder.open(folder).split("train").read(0, 3).tolist() == ids.tolist()
    assert (manifest.tokenizer.spec, manifest.tokenizer.n_vocab) == ("file", 70_000)


def test_our_own_shards_without_their_manifest(tmp_path: Path) -> None:
    ids = stream(TEXTS, "append")
    for split in ("train", "val"):
        with ShardWriter(tmp_path, "x", split, tokenizers.byte(), 20) as writer:
            writer.write(ids)
    folder, manifest = import_shards([tmp_path], "byte")
    assert (manifest.eot, manifest.splits["train"].documents) == ("append", len(TEXTS))
    assert verify_folder(folder) == []


@pytest.mark.parametrize("form", [write_raw, write_llm_c])
def test_what_is_damaged_later_is_named_and_not_read(tmp_path: Path, form: object) -> None:
    ids = np.random.default_rng(3).integers(0, 257, 600_000)
    form(tmp_path / "train.bin", ids), form(tmp_path / "val.bin", ids[:999])  # type: ignore[operator]
    import_shards([tmp_path], "byte")
    rng, offset = random.Random(5), 1024 if form is write_llm_c else 0
    for path in (tmp_path / "train.bin", tmp_path / "val.bin"):
        good = path.read_bytes()
        for _ in range(25):
            where = rng.randrange(len(good))
            with path.open("r+b") as file:
                file.seek(where)
                file.write(bytes([good[where] ^ (1 << rng.randrange(8))]))
            mib = (where - offset) >> 20
            [(name, reason)] = verify_folder(tmp_path)
            assert name == path.name
            assert reason.startswith(
                "damaged in header" if where < offset else f"damaged in MiB {mib} of"
            ), reason
            if not 12 <= where < offset:  # of llm.c's header nothing else is used
                with pytest.raises(BadDataError, match=path.name):
                    documents_of(tmp_path, path.stem)
            path.write_bytes(good)
        for cut in (0, 1, 11, len(good) - 1, len(good) - 2):
            os.truncate(path, cut)
            with pytest.raises(BadDataError, match=path.name):
                DataFolder.open(tmp_path)
            path.write_bytes(good)


def header(*words: int) -> bytes:
    return struct.pack("<3i", *words).ljust(1024, b"\0")


BAD_FILES = [
    (b"", "is empty"),
    (b"abc", "3 bytes and neither llm.c's header nor 16-bit ids"),
    (header(20240520, 1, 2)[:1000], "ends in its header, 1000 of 1024"),
    (header(20240520, 2, 2) + b"abcd", "version 2 in its header, only 1 is known"),
    (header(20240801, 1, 2) + b"abcdefgh", "version 1 in its header, only 7 is known"),
    (header(20240520, 1, 0), "has 0 ids"),
    (header(20240520, 1, -5), "has -5 ids"),
    (header(20240520, 1, 2) + b"abc", "has 1,027 bytes, its header says 2 ids, so 1,028"),
    (header(20240520, 1, 2) + b"abcdef", "has 1,030 bytes"),
    (
        header(20240520, 1, 2) + struct.pack("<2H", 5, 257),
        "id 257 at position 1 is not in tokenizer byte, 0 to 256",
    ),
    (struct.pack("<4H", 1, 2, 999, 3), "id 999 at position 2"),
    (bytes(2 << 20) + struct.pack("<2H", 1, 300), "id 300 at position 1,048,577"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES, ids=[words for _, words in BAD_FILES])
def test_files_that_are_no_ids_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    write_raw(tmp_path / "val.bin", np.arange(9))
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(BadDataError, match=words) as caught:
        import_shards([tmp_path], "byte", eot="append")
    assert "train.bin" in str(caught.value)
    assert len(str(caught.value)) <= 200 + len(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["train.bin", "val.bin"]


def test_which_file_is_for_what(tmp_path: Path) -> None:
    for name in (
        "a_train_2.bin",
        "a_train_10.bin",
        "a_val_0.bin",
        "b.bin",
        "trainval.bin",
        "a b_train.bin",
    ):
        write_raw(tmp_path / name, np.arange(9))

    def chosen(sources: list[str], val: tuple[str, ...] = ()) -> list[list[str]]:
        found = choose([tmp_path / name for name in sources], [tmp_path / name for name in val])
        return [[path.name for path in found[split]] for split in ("train", "val")]  # type: ignore[index]

    names = ["a_train_10.bin", "a_train_2.bin", "a_val_0.bin"]
    assert chosen(names) == [["a_train_2.bin", "a_train_10.bin"], ["a_val_0.bin"]]
    assert chosen(["b.bin", "a_val_0.bin"], ("a_val_0.bin",)) == [["b.bin"], ["a_val_0.bin"]]
    for wrong, error, words in [
        (["."], UsageError, "trainval.bin|b.bin"),
        (["b.bin", "a_val_0.bin"], UsageError, "is b.bin for train or val"),
        (["a_train_2.bin"], UsageError, "no file is for val"),
        (["a_val_0.bin", "a_train_9.bin"], MissingInputError, "a_train_9.bin does not exist"),
        (["a_val_0.bin", "a b_train.bin"], UsageError, "name it with letters"),
        (["a_val_0.bin", "a_train_2.bin", "a_train_2.bin"], UsageError, "same name"),
    ]:
        with pytest.raises(error, match=words):
            chosen(wrong)


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        write_raw(tmp_path / name, np.arange(9))
    (tmp_path / "tokenizer.json").write_text("somebody's")
    with pytest.raises(CannotCreateError, match="another one; move it away"):
        import_shards([tmp_path], "byte")
    assert (tmp_path / "tokenizer.json").read_text() == "somebody's"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="several programs"):
        import_shards(
            [tmp_path / "val.bin", write_llm_c(tmp_path / "b_train.bin", np.arange(3))], "byte"
        )
    (tmp_path / ".tmp-train.crc32-01234567").write_text("of a killed import")
    (tmp_path / "train.crc32").write_text("of a killed import")
    import_shards([tmp_path / "train.bin", tmp_path / "val.bin"], "byte")
    assert verify_folder(tmp_path) == []
    assert not list(tmp_path.glob(".tmp*"))
    with pytest.raises(CannotCreateError, match="is a data folder already; type: nanogpt verify"):
        import_shards([tmp_path / "train.bin", tmp_path / "val.bin"], "byte")


def test_hard_links_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    train, val = (
        write_raw(tmp_path / "a" / "train.bin", np.arange(9)),
        write_raw(tmp_path / "b" / "x.bin", np.arange(4)),
    )
    (tmp_path / "link_train.bin").symlink_to(train)
    with pytest.raises(UsageError, match="several folders; give --out"):
        import_shards([train], "byte", [val])
    with pytest.raises(BadDataError, match="symbolic link"):
        import_shards([tmp_path / "link_train.bin"], "byte", [val])
    for _ in range(2):  # the second time after an interruption, so that the links are there
        folder, _manifest = import_shards(
            [tmp_path / "link_train.bin"], "byte", [val], out=tmp_path / "out"
        )
        (folder / "manifest.json").unlink()
    assert (folder / "link_train.bin").samefile(train)
    assert (folder / "x.bin").samefile(val)
    assert os.listdir(tmp_path / "a") == ["train.bin"]


def test_a_wrong_guess_about_end_of_text_is_noted(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        write_raw(tmp_path / name, stream(TEXTS, "prepend"))
    notes: list[str] = []
    import_shards([tmp_path], "byte", note=notes.append)
    assert ["--eot prepend" in note for note in notes] == [True]
    (tmp_path / "manifest.json").unlink()
    _, manifest = import_shards([tmp_path], "byte", eot="prepend", note=notes.append)
    assert (len(notes), manifest.splits["train"].documents) == (1, len(TEXTS))


def test_an_error_in_one_file_ends_the_others(tmp_path: Path) -> None:
    for index in range(20):
        write_raw(
            tmp_path / f"train_{index}.bin", np.arange(100) * (index != 3) + 300 * (index == 3)
        )
    write_raw(tmp_path / "val.bin", np.arange(9))
    with pytest.raises(NanogptError, match=r"train_3\.bin: id 300 at position 0"):
        import_shards([tmp_path], "byte")


def test_ids_that_are_wider_than_they_are_taken_for_are_refused(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50257, 999)
    for kind, words in [
        ("<u4", "looks like uint32 ids.*--uint32"),
        ("<i8", r"looks like int64; .*astype\('uint16'\)"),
        (">i8", None),  # nobody's; told by its first id that is not there
    ]:
        for name in ("train", "val"):
            ids.astype(kind).tofile(tmp_path / f"{name}.bin")
        with pytest.raises(BadDataError, match=words):
            import_shards([tmp_path], "gpt2")
    ids[:998].astype("<u2").tofile(tmp_path / "val.bin")
    with pytest.raises(BadDataError, match="16-bit, without --uint32"):
        import_shards([tmp_path], "gpt2", uint32=True)
    for name in ("train", "val"):
        ids.astype("<u4").tofile(tmp_path / f"{name}.bin")
    _, manifest = import_shards([tmp_path], "gpt2", uint32=True)
    assert manifest.splits["train"].tokens == len(ids)


def test_64_bit_ids_are_told_also_with_uint32(tmp_path: Path) -> None:
    for name in ("train", "val"):
        np.arange(99).astype("<i8").tofile(tmp_path / f"{name}.bin")
    with pytest.raises(BadDataError, match="looks like int64"):
        import_shards([tmp_path], "byte", uint32=True)


def test_16_bit_ids_of_which_every_second_is_zero_can_be_said_to_be_so(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_raw(tmp_path / f"{name}.bin", np.array([7, 0, 9, 0] * 40))
    with pytest.raises(BadDataError, match="--no-uint32"):
        import_shards([tmp_path], "byte")
    assert import_shards([tmp_path], "byte", uint32=False)[1].splits["val"].tokens == 160


def test_files_of_other_programs_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    (
        np.save(tmp_path / "train.npy", np.arange(50, dtype="<u2")),
        np.save(tmp_path / "val.npy", np.arange(50)),
    )
    with pytest.raises(BadDataError) as refused:
        import_shards([tmp_path], "byte")
    for name in ("train", "val"):  # as the message says
        line = str(refused.value).partition("python3 -c ")[2].strip('"').replace("train", name)
        subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    write_raw(tmp_path / "val.bin", np.arange(50))
    assert import_shards([tmp_path], "byte")[1].splits["train"].tokens == 50
    for head, words in [
        (b"\x93NUMPY", "numpy's header"),
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b", "gzip"),
    ]:
        (tmp_path / "b_train.bin").write_bytes(head + bytes(200))
        with pytest.raises(BadDataError, match=words):
            import_shards(
                [tmp_path / "b_train.bin"], "byte", [tmp_path / "val.bin"], tmp_path / "out"
            )


def test_another_disk_gets_copies(tmp_path: Path) -> None:
    ram = Path("/dev/shm")
    if not ram.is_dir() or ram.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    for name in ("train", "val"):
        write_raw(tmp_path / f"{name}.bin", np.arange(200))
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        out = Path(folder) / "out"
        for _ in range(2):  # the second time after an interruption, so that the copies are there
            import_shards([tmp_path], "byte", out=out, note=notes.append)
            (out / "manifest.json").unlink()
        (out / "val.bin").write_bytes(b"somebody's")
        with pytest.raises(CannotCreateError, match="another one; move it away"):
            import_shards([tmp_path], "byte", out=out)
        assert (out / "train.bin").read_bytes() == (tmp_path / "train.bin").read_bytes()
        assert not list(out.glob(".tmp*"))
    assert len(notes) == 2
    assert "becomes a copy, 400 bytes" in notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_imported_into_another(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("train", "val"):
        write_raw(tmp_path / "in" / f"{name}.bin", np.arange(200))
    (tmp_path / "in").chmod(0o555)
    with pytest.raises(CannotCreateError, match="add --out DIR"):
        import_shards([tmp_path / "in"], "byte")
    assert (
        import_shards([tmp_path / "in"], "byte", out=tmp_path / "out")[1].splits["val"].tokens
        == 200
    )
