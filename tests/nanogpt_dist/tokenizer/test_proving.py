"""Patterns made to harm: that match nothing, that lose text, that take gigabytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import MAX_LINE, BadDataError, TextError
from nanogpt_dist.tokenizer import Tokenizer, hf_library, patterns, proving
from nanogpt_dist.tokenizer.bpe import to_printable
from nanogpt_dist.tokenizer.loading import open_tokenizer
from nanogpt_dist.tokenizer.tokenizer import PROBE

BYTES = [bytes([i]) for i in range(256)]
WRONG = [
    ("x*", "matches the empty string"),
    (r"(?=w)|\S|\s+", "leaves out part of a text"),
    ("[0-9]", "leaves out part of a text"),
    (r"[\p{L}\p{N}\p{P}\p{S}]+", "leaves out part of a text"),
    (r"(?<!\w{90})" * 150 + ".", "more than 1,000 characters"),
    (r"(?<!\w{90})" * 80 + ".", "more than 16 counted repeats"),
]


def forged(path: Path, pattern: str) -> Path:
    """A tokenizer.json of ours with the right fingerprint, whatever its pattern."""
    made = Tokenizer("x", "bpe", BYTES)
    made.pattern = patterns.Pattern(pattern, pattern, None)
    path.write_bytes(made.to_json())
    return path


def hugging_face(path: Path, *regexes: str, decoder: Any = None) -> Path:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in regexes
    ]
    steps = [*splits, {**level, "use_regex": False}]
    vocab = {to_printable(byte): number for number, byte in enumerate(BYTES)}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("pattern", "message"), WRONG)
def test_a_file_of_ours_with_such_a_pattern_is_refused(
    pattern: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadDataError, match=message) as error:
        tokenizers.load(forged(tmp_path / "t.json", pattern))
    assert len(str(error.value)) <= MAX_LINE


@pytest.mark.parametrize("pattern", ["x*", "[0-9]"])
def test_hugging_faces_library_keeps_what_a_pattern_leaves_out(
    pattern: str, tmp_path: Path
) -> None:
    opened = open_tokenizer(str(hugging_face(tmp_path / "t.json", pattern)))
    assert isinstance(opened, hf_library.LibraryTokenizer)
    assert opened.decode(opened.encode("Hello 123")) == "Hello 123"


@pytest.mark.parametrize(
    "regexes",
    [
        (r"(?<!\w{90})" * 2000 + ".",),
        (r"(?<!\w{90})" * 10, r"(?<!\w{80})" * 10),
        ("a" * 600, "b" * 600),
    ],
)
def test_large_patterns_of_hugging_faces_are_refused(
    regexes: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(BadDataError, match="its pattern has more than") as error:
        open_tokenizer(str(hugging_face(tmp_path / "t.json", *regexes)))
    assert len(str(error.value)) <= MAX_LINE


def test_a_decoders_pattern_counts_as_well(tmp_path: Path) -> None:
    decoder = {"type": "Replace", "pattern": {"Regex": "(?=a)" * 300}, "content": ""}
    path = hugging_face(tmp_path / "t.json", decoder=decoder)
    with pytest.raises(BadDataError, match="more than 1,000 characters"):
        open_tokenizer(str(path))


def test_what_a_probe_does_not_show_is_told_of_the_text() -> None:
    nothing = Tokenizer("x", "bpe", BYTES, r"(?=ж)|\S|\s+")
    loses = Tokenizer("x", "bpe", BYTES, r"[^ж]+")
    for tokenizer in (nothing, loses):
        assert tokenizer.decode(tokenizer.encode("Hello, é 🙂")) == "Hello, é 🙂"
        with pytest.raises(TextError, match="does not cut all of a text into words"):
            tokenizer.encode("мажор")


@pytest.mark.parametrize("pattern", patterns.KNOWN.values())
def test_the_known_patterns_pass(pattern: patterns.Pattern) -> None:
    for text in (pattern.text, pattern.fast):
        proving.check_pattern(text, PROBE)
        assert len(text) < proving.MAX_CHARS / 3


def test_a_character_by_its_number_is_no_counted_repeat() -> None:
    proving.check_size([r"[\x{4E00}-\x{9FFF}]" * 20])
