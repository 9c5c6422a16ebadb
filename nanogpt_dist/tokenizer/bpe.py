"""Byte-pair vocabularies: GPT-2's, learnt ones, and tiktoken's lists of ranks.

A vocabulary is a list of byte strings; the position in it is the id and, when pairs are merged, the
rank.
"""

import base64
import binascii
import gzip
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError

GPT2_MERGES = Path(__file__).parents[1] / "assets" / "vocab.bpe.gz"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

_UNBROKEN = re.compile(r"\S{1000}|\s{1000}")


def gpt2_vocabulary() -> list[bytes]:
    """GPT-2's 50,256 tokens, rebuilt from the packaged merge list."""
    merges = gzip.decompress(GPT2_MERGES.read_bytes())
    if hashlib.sha256(merges).hexdigest() != GPT2_MERGES_SHA256:
        raise BadDataError(f"{GPT2_MERGES.name} is damaged: install nanogpt-dist again")
    # After a version line, each line is a pair of tokens in the printable alphabet; merged, they
    # are the next id.
    pairs = merges.decode().split("\n")[1:-1]
    return [*_PRINTABLE.values(), *(from_printable(pair.replace(" ", "")) for pair in pairs)]


def train_merges(texts: Iterable[str], size: int, flag: str = "--tokenizer bpe:") -> Any:
    """A `tokenizers.Tokenizer` of `size` ≥ 256 tokens, learnt from `texts` in their order.

    Its pattern is GPT-2's.

    flag: what a number of ids, end of text included, is typed behind.

    Raises BadDataError where the texts are too few for that many merges.
    """
    assert size >= 256, size
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # No special tokens here: with any, the ranks would not be tiktoken's.
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    model.train_from_iterator(_without_long_runs(texts), trainer)
    ids = model.get_vocab()
    if len(ids) != size:
        raise BadDataError(
            f"the text gives only {len(ids) + 1} of {size + 1} ids; type {flag}{len(ids) + 1}"
        )
    return model


def tokens_by_id(ids: dict[str, int]) -> list[bytes]:
    """The tokens of a byte-level vocabulary {printable token: id}, by id. Raises KeyError."""
    return [from_printable(token) for token in sorted(ids, key=ids.__getitem__)]


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, cut within runs of a thousand characters without a border.

    The trainer is quadratic in their length.
    """
    for text in texts:
        start = 0
        for run in _UNBROKEN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def to_printable(token: bytes) -> str:
    """A token in the alphabet in which merge lists write bytes."""
    return "".join(_LETTERS[byte] for byte in token)


def merges_of(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The pairs of which tokens are made, in the order of their ranks.

    None of a token that no pair gives.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for token, rank in ranks.items():
        parts = _merged(token, ranks, rank) if len(token) > 1 else []
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def _merged(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """`token` after all merges of a rank below `below`: of the lowest first, the leftmost of these.

    A heap of pairs over parts that know their neighbours: n log n steps for n bytes.
    """
    n = len(token)
    ends = list(range(1, n + 1))  # of the part that begins there; 0: none does any more
    before = list(range(-1, n - 1))  # where the part in front of it begins
    pairs: list[tuple[int, int, int]] = []  # rank, begin, end

    def note(begin: int, end: int) -> None:
        if (rank := ranks.get(token[begin:end], below)) < below:
            heapq.heappush(pairs, (rank, begin, end))

    for begin in range(n - 1):
        note(begin, begin + 2)
    while pairs:
        _, begin, end = heapq.heappop(pairs)
        middle = ends[begin]
        if not middle or middle >= end or ends[middle] != end:
            continue  # one of the two has grown since
        ends[begin], ends[middle] = end, 0
        if end < n:
            before[end] = begin
            note(begin, ends[end])
        if begin:
            note(before[begin], end)
    return [token[begin:end] for begin, end in enumerate(ends) if end]


def parse_ranks(data: bytes, name: str) -> list[bytes]:
    """The tokens in a .tiktoken file: each line is a token in base64 and its rank.

    Raises BadDataError.
    """
    tokens = []
    for number, line in enumerate(data.splitlines()):
        encoded, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(encoded, validate=True))
        except binascii.Error:
            rank = b""
        if rank != str(number).encode():
            raise BadDataError(
                f"{name}:{number + 1}: expected a token in base64 and the rank {number}"
            )
    return tokens


def format_ranks(tokens: Sequence[bytes]) -> bytes:
    """What parse_ranks reads."""
    encoded = (binascii.b2a_base64(token, newline=False) for token in tokens)
    return b"".join(b"%s %d\n" % (token, rank) for rank, token in enumerate(encoded))


def _printable_bytes() -> dict[str, bytes]:
    """The alphabet in which merge lists write bytes, in the order of GPT-2's ids.

    Latin-1's printable characters stand for themselves, U+0100 and on for the other 68 bytes.
    """
    visible = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): bytes([b]) for b in visible} | {
        chr(256 + i): bytes([b]) for i, b in enumerate(hidden)
    }


_PRINTABLE = _printable_bytes()


def from_printable(token: str) -> bytes:
    """The bytes that a token in that alphabet stands for. Raises KeyError for another character."""
    return b"".join(map(_PRINTABLE.__getitem__, token))


_LETTERS = {byte[0]: letter for letter, byte in _PRINTABLE.items()}
