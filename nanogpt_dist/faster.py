"""GPT-2's pattern at twice the speed, where the package splintr-rs is installed (`pip install nanogpt-dist[fast]`).

It gave tiktoken's ids on all that it was tried on; as it is young, one piece of text in CHECK_EVERY is encoded by both,
and a difference is an error.
"""

from collections.abc import Callable, Sequence

import numpy as np

from nanogpt_dist import bpe, patterns
from nanogpt_dist.errors import BadDataError

CHECK_EVERY = 100
# GPT-2's pattern as OpenAI wrote it first: without possessive quantifiers, which change nothing but the speed.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

Encode = Callable[[str], np.ndarray]


def faster(tokens: Sequence[bytes], pattern: patterns.Pattern, reference: Encode) -> Encode:
    """A function from text to ids, equal to `reference`, which it is where there is nothing faster."""
    try:
        from splintr import Tokenizer
    except ImportError:
        return reference
    if pattern is not patterns.GPT2:
        return reference
    encode_flat = Tokenizer.from_bytes(bpe.ranks_file(tokens), _PATTERN, {}).encode_flat
    calls = 0

    def encode(text: str) -> np.ndarray:
        nonlocal calls
        ids = np.frombuffer(encode_flat(text), np.uint32)
        if calls % CHECK_EVERY == CHECK_EVERY // 2 and not np.array_equal(ids, reference(text)):
            raise BadDataError(
                f"splintr encodes {text[:20]!r} … unlike tiktoken; pip uninstall splintr-rs, add --fresh"
            )
        calls += 1
        return ids

    return encode
