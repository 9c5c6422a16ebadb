"""Byte-pair encoding as GPT-2 does it: its pattern, where text may be cut, and where vocabularies come from.

A vocabulary is a list of byte strings; the position in it is the id and, when pairs are merged, the rank.
"""

import base64
import binascii
import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanogpt_dist.errors import BadDataError

# GPT-2's rule for cutting text before merging, as the tiktoken library writes it (see assets/NOTICE).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT2_MERGES = Path(__file__).parent / "assets" / "vocab.bpe.gz"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# White space as the pattern's \s sees it; Python's own \s has \x1c-\x1f on top.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_RUN_CHARS = 65_536
_LONG_RUN = re.compile(f"[{_SPACE}](?<![{_SPACE}][{_SPACE}])[{_SPACE}]{{{_LONG_RUN_CHARS - 1},}}")
_UNBROKEN = re.compile(r"\S{1000}|\s{1000}")
_WORD_END = re.compile(f"[^{_SPACE}](?=[{_SPACE}])")


def cut(text: str, size: int) -> Iterator[str]:
    """`text` in parts of about `size` characters whose ids, one after the other, are the ids of `text`.

    Two kinds of cut are exact under GPT-2's pattern: before white space that follows something else, since no match
    spans that border; and before the last character of a run of white space that has text behind it, since a match
    ends there. The latter keep tiktoken from failing on runs of a million characters.
    """
    start = 0
    runs = [m.end() - 1 for m in _LONG_RUN.finditer(text) if m.end() < len(text)] if len(text) > _LONG_RUN_CHARS else []
    for stop in [*runs, len(text)]:
        while stop - start > size and (border := _WORD_END.search(text, start + size - 1, stop)):
            yield text[start : border.end()]
            start = border.end()
        if start < stop:
            yield text[start:stop]
        start = stop


def gpt2_vocabulary() -> list[bytes]:
    """GPT-2's 50,256 tokens, rebuilt from the packaged merge list."""
    merges = gzip.decompress(GPT2_MERGES.read_bytes())
    if hashlib.sha256(merges).hexdigest() != GPT2_MERGES_SHA256:
        raise BadDataError(f"{GPT2_MERGES.name} is damaged: install nanogpt-dist again")
    # After a version line, each line is a pair of tokens in the printable alphabet; merged, they are the next id.
    pairs = merges.decode().split("\n")[1:-1]
    return [*_PRINTABLE.values(), *(_from_printable(pair.replace(" ", "")) for pair in pairs)]


def train_vocabulary(texts: Iterable[str], size: int) -> list[bytes]:
    """`size` ≥ 256 tokens learnt from `texts`: the bytes and the most frequent merges. A function of the texts alone.

    Raises BadDataError where the texts are too few for that many merges.
    """
    assert size >= 256, size
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # No special tokens here: with any, the ranks would not be tiktoken's.
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    model.train_from_iterator(_without_long_runs(texts), trainer)
    ids = model.get_vocab()
    if len(ids) != size:
        raise BadDataError(f"the text gives only {len(ids) + 1} of {size + 1} ids; type --tokenizer bpe:{len(ids) + 1}")
    return [_from_printable(token) for token in sorted(ids, key=ids.__getitem__)]


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, cut within runs of a thousand characters without a border: the trainer is quadratic in their length."""
    for text in texts:
        start = 0
        for run in _UNBROKEN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def parse_ranks(data: bytes, name: str) -> list[bytes]:
    """The tokens in a .tiktoken file: on each line a token in base64 and its rank. Raises BadDataError."""
    tokens = []
    for number, line in enumerate(data.splitlines()):
        encoded, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(encoded, validate=True))
        except binascii.Error:
            rank = b""
        if rank != str(number).encode():
            raise BadDataError(f"{name}:{number + 1}: expected a token in base64 and the rank {number}")
    return tokens


def _printable_bytes() -> dict[str, bytes]:
    """The alphabet in which merge lists write bytes, in the order of GPT-2's ids.

    Latin-1's printable characters stand for themselves, U+0100 and on for the other 68 bytes.
    """
    visible = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): bytes([b]) for b in visible} | {chr(256 + i): bytes([b]) for i, b in enumerate(hidden)}


_PRINTABLE = _printable_bytes()


def _from_printable(token: str) -> bytes:
    return b"".join(map(_PRINTABLE.__getitem__, token))
