"""Patterns: the fast form matches what the known one does, and a cut leaves no trace in the ids."""

import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import Tokenizer, patterns
from nanogpt_dist.tokenizer.patterns import CL100K, GPT2, KNOWN, LLAMA3, O200K, QWEN2, Pattern

NAMES = {"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K, "llama3": LLAMA3, "qwen2": QWEN2}
PIECES = [
    "\n",
    "\r\n",
    " ",
    "  ",
    "\t",
    "\u3000",
    "\x1c",
    "\x85",
    "\xa0",
    "a",
    "B",
    "é",
    "Ü",
    "7",
    "123",
    "'s",
    "'LL",
    "'",
    "!?",
    "...",
]
PIECES += [
    "<|endoftext|>",
    "東京",
    "、",
    "。",
    "ǅ",
    "ﬁ",
    "\u0301",
    "²",
    "/",
    "で",
    "ー",
    "한",
    "」",
    "“",
    "’",
    "мир",
    "हि",
    "\r",
    "🙂",
    "-",
    "_",
    "don't",
    "\u2028",
    "\u200b",
    "\0",
]
ODD = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=40)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return {token: rank for rank, token in enumerate(tokenizers.gpt2().tokens)}


@pytest.fixture(scope="module")
def encodings(ranks: dict[bytes, int]) -> dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]]:
    """For each pattern tiktoken with it as it is known, and with its fast form."""

    def encoding(text: str) -> tiktoken.Encoding:
        return tiktoken.Encoding("test", pat_str=text, mergeable_ranks=ranks, special_tokens={})

    return {
        name: (encoding(pattern.text), encoding(pattern.fast)) for name, pattern in NAMES.items()
    }


def test_patterns_are_tiktokens() -> None:
    from tiktoken_ext import openai_public

    source = Path(openai_public.__file__).read_text(encoding="utf-8")
    assert openai_public.r50k_pat_str == GPT2.text
    assert CL100K.text in source
    for part in patterns._O200K_WORDS:
        assert part in source
    assert set(KNOWN) == {pattern.text for pattern in NAMES.values()}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=600)
@given(text=ODD)
def test_the_fast_form_is_equal(
    name: str,
    encodings: dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]],
    text: str,
) -> None:
    slow, fast = encodings[name]
    assert fast.encode(text, disallowed_special=()) == slow.encode(text, disallowed_special=())


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_form_is_equal_on_real_text(
    name: str,
    encodings: dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]],
) -> None:
    slow, fast = encodings[name]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]:
        text = path.read_text(encoding="utf-8")
        assert fast.encode_ordinary(text) == slow.encode_ordinary(text)


def in_chunks(text: str, cuts: list[int]) -> Iterator[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    yield from (text[start:stop] for start, stop in pairwise(borders))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=600)
@given(
    text=ODD, size=st.integers(1, 12), cuts=st.none() | st.lists(st.integers(0, 100), max_size=6)
)
def test_cuts_do_not_change_ids(
    name: str,
    encodings: dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]],
    text: str,
    size: int,
    cuts: list[int] | None,
) -> None:
    slow, fast = encodings[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "LONG_RUN_CHARS", 0)
        given = text if cuts is None else in_chunks(text, cuts)
        pieces = list(patterns.cut(given, size, NAMES[name]))
    assert "".join(pieces) == text
    whole = slow.encode(text, disallowed_special=())
    assert [
        number for piece in pieces for number in fast.encode(piece, disallowed_special=())
    ] == whole


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=600)
@given(text=ODD, size=st.integers(1, 3))
def test_no_pre_token_lies_across_a_cut(name: str, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "LONG_RUN_CHARS", 0)
        pieces = list(patterns.cut(text, size, NAMES[name]))
    pattern = regex.compile(NAMES[name].text)
    assert [word for piece in pieces for word in pattern.findall(piece)] == pattern.findall(text)


def test_where_scripts_without_spaces_are_cut_stand_letters_and_marks() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x20000)):
        char = chr(code)
        if patterns.re.fullmatch(f"[{patterns._CJK_LETTER}]", char):
            assert regex.fullmatch(r"\p{L}", char), hex(code)
        if patterns.re.fullmatch(f"[{patterns._CJK_MARK}]", char):
            assert regex.fullmatch(r"[^\s\p{L}\p{M}\p{N}'/]", char), hex(code)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "end", ["。", "」\n", "\n", "\r\n", "。\n\n", "。\u3000", "\n\n\u3000\u3000"]
)
def test_text_without_spaces_is_cut_at_its_marks_and_line_ends(
    name: str,
    end: str,
    encodings: dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]],
) -> None:
    text = ("東京は大きい" * 4 + end) * 100
    pieces = list(patterns.cut(in_chunks(text, [1000, 2000]), 60, NAMES[name]))
    assert max(map(len, pieces)) < 120
    slow, fast = encodings[name]
    assert [
        number for piece in pieces for number in fast.encode_ordinary(piece)
    ] == slow.encode_ordinary(text)


@pytest.mark.parametrize("run", [3, 10])
@settings(max_examples=300)
@given(text=ODD, cuts=st.lists(st.integers(0, 100), max_size=6))
def test_long_runs_are_cut_exactly_in_chunks_too(
    run: int,
    encodings: dict[str, tuple[tiktoken.Encoding, tiktoken.Encoding]],
    text: str,
    cuts: list[int],
) -> None:
    text = text.replace("  ", "  " * run).replace("\n", "\n" * run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "LONG_RUN_CHARS", 3)
        patch.setattr(
            patterns,
            "_LONG_RUN",
            patterns.re.compile(patterns._LONG_RUN.pattern.replace("{65535,}", "{2,}")),
        )
        pieces = list(patterns.cut(in_chunks(text, cuts), 5, GPT2))
    slow, fast = encodings["gpt2"]
    assert "".join(pieces) == text
    assert [
        number for piece in pieces for number in fast.encode_ordinary(piece)
    ] == slow.encode_ordinary(text)


def test_text_in_chunks_takes_no_memory_but_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", 1000)
    for tokenizer in (tokenizers.gpt2(), tokenizers.byte()):
        chunks = ("some text, and more of it " * 10 for _ in range(1000))
        sizes = [len(piece) for piece in tokenizer.pieces(chunks)]
        assert sum(sizes) == 260_000
        assert max(sizes) < 1500


def test_a_word_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_UNBROKEN", 5000)
    with pytest.raises(
        BadDataError, match="in which no word ends, too long for one; cut the document"
    ):
        list(patterns.cut(("é" * 100 for _ in range(100)), 1000, GPT2))
    assert "".join(patterns.cut(("é " * 50 for _ in range(100)), 1000, GPT2)) == "é " * 5000


def test_a_pattern_that_is_not_known_is_not_cut() -> None:
    tokens = [bytes([i]) for i in range(256)]
    tokenizer = Tokenizer("words", "bpe", tokens, r"\w+ \w+|.|\n")
    assert not tokenizer.cuttable
    assert list(tokenizer.pieces(iter(["a b ", "c d"]))) == ["a b c d"]
    assert Pattern("x", "x", None) == patterns.pattern_of("x")
    assert tokenizers.gpt2().cuttable


def test_what_is_too_much_for_tiktoken_is_told() -> None:
    tokens = [bytes([i]) for i in range(256)]
    tokenizer = Tokenizer("cl", "bpe", tokens, CL100K.text)
    with pytest.raises(BadDataError, match="a very long run of white space"):
        tokenizer.encode(" " * 1_100_000 + "x")
