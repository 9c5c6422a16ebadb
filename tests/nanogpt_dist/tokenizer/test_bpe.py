"""The merges that make a token: as merging pair by pair finds them, whatever its length."""

import itertools
import random

from nanogpt_dist.tokenizer import bpe

BYTES = [bytes([i]) for i in range(256)]


def pair_by_pair(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """What bpe._merged is to find, looked for from the start after each merge."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= below:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_merges_are_those_found_pair_by_pair() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        letters = b"abc"[: chance.randint(1, 3)]
        words = [
            bytes(chance.choices(letters, k=chance.randint(1, 7)))
            for _ in range(chance.randint(1, 16))
        ]
        ranks = {word: rank for rank, word in enumerate(dict.fromkeys(words))}
        token = bytes(chance.choices(letters, k=chance.randint(1, 30)))
        below = chance.randint(0, len(ranks) + 1)
        assert bpe._merged(token, ranks, below) == pair_by_pair(token, ranks, below)


def test_a_token_of_100000_bytes_takes_no_longer_than_100_of_1000() -> None:
    """It was quadratic: 16,000 bytes took 12 s."""
    tokens = [*BYTES, b"aa", b"a" * 100_000, b"aaaa"]
    assert bpe.merges_of(tokens) == [(b"a", b"a"), (b"aa", b"aa")]


def test_the_merges_of_gpt2_come_back() -> None:
    tokens = bpe.gpt2_vocabulary()[:5000]
    merges = bpe.merges_of(tokens)
    assert [a + b for a, b in merges] == tokens[256:]
