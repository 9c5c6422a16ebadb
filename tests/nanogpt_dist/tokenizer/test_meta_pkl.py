"""meta.pkl as an instruction list: containers in containers, and what is no character."""

import pickle
from pathlib import Path

import pytest

from nanogpt_dist.errors import MAX_LINE, BadDataError
from nanogpt_dist.tokenizer.loading import open_tokenizer
from nanogpt_dist.tokenizer.meta_pkl import read_plain_pickle

PLAIN = {"itos": {0: "a", 1: "b"}, "more": [1, [2, (3, [4, ()])], {"x": (5, 6, 7, 8)}], "n": None}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_in_containers_are_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert read_plain_pickle(path) == PLAIN


def test_many_marks_above_many_values_are_read_one_by_one(tmp_path: Path) -> None:
    """Looking for each mark through all that lies on the stack took 40 s for 90 KB."""
    path, n = tmp_path / "meta.pkl", 100_000
    path.write_bytes(b"\x80\x02" + b"N" * n + b"(t" * n + b".")
    assert read_plain_pickle(path) == ()


@pytest.mark.parametrize("program", [b"t.", b"(.", b"N(t(u.", b"(N("])
def test_marks_that_are_not_there_are_told(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(b"\x80\x02" + program)
    with pytest.raises(BadDataError, match="is no pickle of plain values"):
        read_plain_pickle(path)


def test_half_of_a_surrogate_pair_is_no_character(tmp_path: Path) -> None:
    path, half = tmp_path / "meta.pkl", b"X\x03\0\0\0\xed\xa0\x80"
    path.write_bytes(b"\x80\x02}X\x04\0\0\0itos}K\0" + half + b"ss.")
    with pytest.raises(BadDataError, match=r"U\+D800 in its itos is half of a surr") as error:
        open_tokenizer(str(path))
    assert len(str(error.value)) <= MAX_LINE
