"""The faster encoder is tiktoken's equal, looked at from time to time, and not needed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import Tokenizer, patterns, splintr
from tests.conftest import Run, hashes, write_jsonl
from tests.nanogpt_dist.tokenizer.test_patterns import ODD

pytest.importorskip("splintr", reason="nanogpt-dist[fast] is not installed")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return tokenizers.gpt2()


def untested(gpt2: Tokenizer) -> splintr.Encode:
    """splintr's own ids."""
    flat = gpt2._encode_pairs._flat
    assert flat is not None
    return lambda text: np.frombuffer(flat(text), np.uint32)


@settings(max_examples=2000)
@given(text=ODD | st.text())
def test_it_is_equal(gpt2: Tokenizer, text: str) -> None:
    assert np.array_equal(untested(gpt2)(text), gpt2._encode_by_tiktoken(text))


def test_every_character_is_of_the_same_class(gpt2: Tokenizer) -> None:
    """Both know the same letters, digits and white space: each character between letters, digits
    and spaces.
    """
    points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    for start in range(0, len(points), 50_000):
        text = "".join(f"a{char}1{char} {char}{char}b" for char in points[start : start + 50_000])
        assert np.array_equal(untested(gpt2)(text), gpt2._encode_by_tiktoken(text)), (
            f"U+{start:06X} and on"
        )


def test_a_difference_in_the_self_test_is_no_harm(
    gpt2: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = splintr.SplintrEncoder(gpt2.tokens, patterns.GPT2, gpt2._encode_by_tiktoken)
    assert encode.uses_splintr
    encode("equal")
    assert (encode.uses_splintr, encode.warning) == (True, "")
    monkeypatch.setattr(encode, "_flat", lambda text: b"")
    ids = [encode(text).tolist() for text in ("hello world", "and on")]
    assert ids == [[31373, 995], [392, 319]]
    assert not encode.uses_splintr
    assert (
        encode.warning
        == "splintr encodes 'hello world' … unlike tiktoken, which goes on alone and is slower"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_told_once(
    workers: int,
    tmp_path: Path,
    documents: list[str],
    monkeypatch: pytest.MonkeyPatch,
    nanogpt: Run,
) -> None:
    """In whole processes, whose splintr is another."""
    write_jsonl(tmp_path / "texts.jsonl", documents)
    (tmp_path / "splintr.py").write_text(
        "class Tokenizer:\n    from_bytes = lambda *given: Tokenizer()\n    encode_flat = lambda "
        "self, text: b'1234'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = ["prepare", "text", "--source", "texts.jsonl", "--workers", workers]
    told = nanogpt(*asked, "--out", "wrong", fork=False).stderr
    assert told.count("unlike tiktoken, which goes on alone") == 1
    monkeypatch.delenv("PYTHONPATH")
    assert "unlike" not in nanogpt(*asked, "--out", "right").stderr
    assert hashes(tmp_path / "wrong") == hashes(tmp_path / "right")


def test_a_difference_behind_it_is_an_error(
    gpt2: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splintr, "CHECK_EVERY", 3)
    monkeypatch.setattr(splintr, "SELF_TEST_BYTES", 0)
    told: list[str] = []

    def reference(text: str) -> np.ndarray:
        told.append(text)
        return gpt2._encode_by_tiktoken("other" if text == "wrong" else text)

    encode = splintr.SplintrEncoder(gpt2.tokens, patterns.GPT2, reference)
    for text in ("two", "three", "four"):
        encode(text)
    with pytest.raises(BadDataError, match="unlike tiktoken; pip uninstall splintr-rs"):
        encode("wrong")
    assert told == ["two", "wrong"]


def test_it_is_not_needed(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not splintr.SplintrEncoder(
        gpt2.tokens, patterns.CL100K, gpt2._encode_by_tiktoken
    ).uses_splintr
    monkeypatch.setitem(sys.modules, "splintr", None)
    encode = splintr.SplintrEncoder(gpt2.tokens, patterns.GPT2, gpt2._encode_by_tiktoken)
    assert not encode.uses_splintr
    assert encode("hello world").tolist() == [31373, 995]
