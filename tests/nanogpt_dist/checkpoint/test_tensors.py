"""Tensors in files: any parts that make up a tensor are read, others are refused."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from nanogpt_dist.checkpoint import tensors as tensors_of_files
from nanogpt_dist.checkpoint.tensors import (
    Part,
    fill,
    index,
    parts_to_write,
    read_into,
    read_whole,
    whole_parts,
    write,
)
from nanogpt_dist.errors import BadDataError, MissingInputError, StorageError


def box(whole: torch.Tensor, *sides: tuple[int, int]) -> Part:
    """The part of `whole` from begin to end in each dimension."""
    data = whole[tuple(slice(begin, end) for begin, end in sides)]
    return Part(data, tuple(begin for begin, _ in sides), tuple(whole.shape))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), cuts=st.tuples(*[st.integers(0, 6)] * 2))
def test_any_boxes_that_make_up_a_tensor_are_read_as_it(
    rows: int, columns: int, cuts: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    whole = torch.arange(float(rows * columns)).view(rows, columns)
    row, column = min(cuts[0], rows), min(cuts[1], columns)
    for at, top in enumerate(((0, row), (row, rows))):
        for beside, left in enumerate(((0, column), (column, columns))):
            part = box(whole, top, left)
            if part.data.numel():
                write(folder / f"part-{at}{beside}.safetensors", {"a": part})
    files = sorted(folder.iterdir())
    assert torch.equal(read_whole(files)["a"], whole)
    assert index(files)["a"].shape == (rows, columns)


def test_whole_tensors_of_each_kind_come_back_with_their_dtype(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "count": torch.tensor([[3]], dtype=torch.int64),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    path = tmp_path / "x.safetensors"
    write(path, whole_parts(tensors), {"format": "pt"})
    found = read_whole([path])
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # none is a part


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_of_tensors_has_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "x", whole_parts({"a": torch.ones(2)}))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_a_write_that_fails_is_told_with_what_it_needs(tmp_path: Path) -> None:
    parts = whole_parts({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float64)})
    with pytest.raises(StorageError, match=r"cannot write x: .*; needed 28 bytes, [\d,]+ are"):
        write(tmp_path / "gone" / "x", parts)


WHOLE = torch.arange(12.0).view(3, 4)
Forge = Callable[[], list[dict[str, Part]]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (lambda: [{"a": box(WHOLE, (0, 2), (0, 4))}], "have 8 elements, the whole 12"),
        (lambda: [{"a": box(WHOLE, (0, 2), (0, 4))}] * 2, "have 16 elements, the whole 12"),
        (
            lambda: [{"a": box(WHOLE, (0, 1), (0, 4))}, {"a": box(WHOLE, (0, 2), (0, 4))}],
            "0.safetensors: its part of a overlaps that in 1.safetensors",
        ),
        (
            lambda: [{"a": box(WHOLE, (0, 2), (0, 4))}, {"a": box(WHOLE, (1, 2), (0, 4))}],
            "overlaps",
        ),
        (
            lambda: [
                {"a": box(WHOLE, (0, 3), (0, 2))},
                {"a": box(WHOLE, (2, 3), (1, 3))},
                {"a": box(WHOLE, (0, 2), (2, 4))},
            ],
            "overlaps",
        ),
        (
            lambda: [{"a": box(WHOLE, (0, 2), (0, 4))}, {"a": box(WHOLE.double(), (2, 3), (0, 4))}],
            r"a is \[3, 4\] torch.float64, elsewhere \[3, 4\]",
        ),
        (
            lambda: [{"a": box(WHOLE, (0, 2), (0, 4))}, {"a": box(WHOLE.T, (0, 1), (0, 3))}],
            r"a is \[4, 3\] torch.float32, elsewhere \[3, 4\]",
        ),
    ],
)
def test_parts_that_do_not_make_up_the_tensor_are_refused(
    files: Forge, words: str, tmp_path: Path
) -> None:
    for number, parts in enumerate(files()):
        write(tmp_path / f"{number}.safetensors", parts)
    with pytest.raises(BadDataError, match=words):
        index(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("note", "is_within"),
    [
        ({"shape": [4, 4], "offsets": [2, 0]}, True),
        ({"shape": [4, 4], "offsets": [3, 0]}, False),
        ({"shape": [4, 4], "offsets": [2, 1]}, False),
        ({"shape": [4, 4], "offsets": [-1, 0]}, False),
        ({"shape": [4, 4], "offsets": [0]}, False),
        ({"shape": [16], "offsets": [0, 0]}, False),
        ({"shape": [4, 4, 1], "offsets": [2, 0]}, False),
        ({"shape": [4, 4]}, False),
        ([], False),
        ({"shape": ["4", 4], "offsets": [2, 0]}, False),
    ],
)
def test_a_part_that_is_not_within_its_tensor_is_refused(
    note: object, is_within: bool, tmp_path: Path
) -> None:
    write(tmp_path / "0", {"a": Part(torch.ones(2, 4), (0, 0), (4, 4))})
    save_file({"a": torch.ones(2, 4)}, tmp_path / "1", {"parts": json.dumps({"a": note})})
    files = [tmp_path / "0", tmp_path / "1"]
    if is_within:
        assert torch.equal(read_whole(files)["a"], torch.ones(4, 4))
    else:
        with pytest.raises(BadDataError):
            index(files)


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    save_file({"a": torch.ones(2, dtype=torch.uint8)}, tmp_path / "bytes")
    save_file({"a": torch.ones(2)}, tmp_path / "deep", {"parts": "[" * 100_000})
    for name in ("empty", "bytes", "deep"):
        with pytest.raises(BadDataError, match=f"{name} cannot be read"):
            index([tmp_path / name])
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere"):
        with pytest.raises(MissingInputError, match=f"{name} is missing; restore it"):
            index([tmp_path / name])


def test_a_file_that_was_damaged_since_it_was_looked_at_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", whole_parts({"a": WHOLE}))
    stored = index([tmp_path / "x"])
    (tmp_path / "x").write_bytes(b"?")
    with pytest.raises(BadDataError, match="x cannot be read"):
        read_into({"a": torch.empty(3, 4)}, stored)


def test_rank_0_alone_writes_what_is_not_sharded_and_a_copy_stays_as_it_was() -> None:
    tensors = {"a": torch.ones(2, 3), "scalar": torch.tensor(2.0)}
    assert parts_to_write(tensors, is_rank0=False) == {}
    assert parts_to_write({"none": torch.ones(0)}, is_rank0=True) == {}
    plain = parts_to_write(tensors, is_rank0=True)
    copies: dict[str, torch.Tensor] = {}
    copied = parts_to_write(tensors, True, copies)
    tensors["a"].zero_()
    assert not plain["a"].data.any()  # it is the tensor itself
    assert torch.equal(copied["a"].data, torch.ones(2, 3))
    assert (copied["a"].offsets, copied["a"].shape) == ((0, 0), (2, 3))
    assert (copied["scalar"].offsets, copied["scalar"].shape) == ((), ())
    memory = {name: copy.data_ptr() for name, copy in copies.items()}
    again = parts_to_write(tensors, True, copies)
    assert not again["a"].data.any()
    assert {name: copy.data_ptr() for name, copy in copies.items()} == memory


@settings(max_examples=50, deadline=None)
@given(cuts=st.tuples(*[st.integers(1, 6)] * 2), here=st.tuples(*[st.integers(0, 7)] * 4))
def test_a_rank_reads_its_own_box_whichever_parts_it_lies_in(
    cuts: tuple[int, int],
    here: tuple[int, int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As where other ranks, or another number of them, have written the parts."""
    folder = tmp_path_factory.mktemp("parts")
    whole = torch.arange(49.0).view(7, 7)
    for number, rows in enumerate(((0, cuts[0]), (cuts[0], 7))):
        for beside, columns in enumerate(((0, cuts[1]), (cuts[1], 7))):
            part = box(whole, rows, columns)
            write(folder / f"part-{number}{beside}.safetensors", {"a": part})
    mine = box(whole, (min(here[:2]), max(here[:2])), (min(here[2:]), max(here[2:])))
    local = torch.full_like(mine.data, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors_of_files, "_held", lambda target: (target, mine.offsets))
        read_into({"a": local}, index(sorted(folder.iterdir())))
    assert torch.equal(local, mine.data)


def test_a_plain_tensor_is_filled_with_the_whole() -> None:
    target = torch.zeros(3, 4)
    fill(target, WHOLE)
    assert torch.equal(target, WHOLE)
