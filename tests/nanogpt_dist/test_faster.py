"""The faster encoder is tiktoken's equal, looked at from time to time, and not needed."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import faster, patterns
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import Tokenizer
from tests.nanogpt_dist.test_patterns import ODD

splintr = pytest.importorskip("splintr", reason="nanogpt-dist[fast] is not installed")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return tokenizers.gpt2()


@settings(max_examples=2000)
@given(text=ODD | st.text())
def test_it_is_equal(gpt2: Tokenizer, text: str) -> None:
    assert gpt2._encode_pairs is not gpt2._encode_by_tiktoken
    assert np.array_equal(gpt2._encode_pairs(text), gpt2._encode_by_tiktoken(text))


def test_every_character_is_of_the_same_class(gpt2: Tokenizer) -> None:
    """Both know the same letters, digits and white space: each character between letters, digits and spaces."""
    points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    for start in range(0, len(points), 50_000):
        text = "".join(f"a{char}1{char} {char}{char}b" for char in points[start : start + 50_000])
        assert np.array_equal(gpt2._encode_pairs(text), gpt2._encode_by_tiktoken(text)), f"U+{start:06X} and on"


def test_a_difference_is_noticed(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster, "CHECK_EVERY", 3)
    told: list[str] = []

    def reference(text: str) -> np.ndarray:
        told.append(text)
        return gpt2._encode_by_tiktoken("other" if text == "wrong" else text)

    encode = faster.faster(gpt2.tokens, patterns.GPT2, reference)
    for text in ("wrong", "two", "three", "four"):
        encode(text)
    with pytest.raises(BadDataError, match="unlike tiktoken; pip uninstall splintr-rs"):
        encode("wrong")
    assert told == ["two", "wrong"]


def test_it_is_not_needed(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faster.faster(gpt2.tokens, patterns.CL100K, gpt2._encode_by_tiktoken) == gpt2._encode_by_tiktoken
    monkeypatch.setitem(sys.modules, "splintr", None)
    assert faster.faster(gpt2.tokens, patterns.GPT2, gpt2._encode_by_tiktoken) == gpt2._encode_by_tiktoken
