"""GPT-2's pattern at twice the speed, by the package splintr-rs (extra `fast`).

It gave tiktoken's ids on all that it was tried on; as it is young, each process begins with a
self-test: the first megabyte is encoded by both, and at a difference tiktoken goes on alone. Of
what follows, one piece of text in CHECK_EVERY is: a difference there is an error, as ids are out
already that nobody compared.
"""

from collections.abc import Callable, Sequence

import numpy as np

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import bpe, patterns

SELF_TEST_BYTES = 10**6
CHECK_EVERY = 100
# GPT-2's pattern as OpenAI wrote it first: without possessive quantifiers, which change nothing but
# the speed.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

Encode = Callable[[str], np.ndarray]


class SplintrEncoder:
    """A function from text to ids, equal to `reference`, which it is where there is nothing faster.

    warning: why it has come back to the reference, else empty.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: patterns.Pattern,
        reference: Encode,
    ) -> None:
        self.warning = ""
        self._reference = reference
        self._flat = _splintr(tokens) if pattern is patterns.GPT2 else None
        self._tested_bytes = self._calls = 0

    @property
    def uses_splintr(self) -> bool:
        return self._flat is not None

    def __call__(self, text: str) -> np.ndarray:
        """Raises BadDataError for a difference behind the self-test."""
        if self._flat is None:
            return self._reference(text)
        if self._tested_bytes < SELF_TEST_BYTES:
            return self._tested(self._flat, text)
        ids = np.frombuffer(self._flat(text), np.uint32)
        self._calls += 1
        if self._calls % CHECK_EVERY == CHECK_EVERY // 2 and not np.array_equal(
            ids, self._reference(text)
        ):
            raise BadDataError(
                f"splintr encodes {text[:20]!r} … unlike tiktoken; pip uninstall splintr-rs, add "
                "--fresh"
            )
        return ids

    def _tested(self, flat: Callable[[str], bytes], text: str) -> np.ndarray:
        """The reference's ids; where splintr has others, it is not used from then on."""
        ids = self._reference(text)
        self._tested_bytes += len(text.encode())
        try:
            equal = np.array_equal(np.frombuffer(flat(text), np.uint32), ids)
        except Exception:  # of a library that is young
            equal = False
        if not equal:
            self._flat = None
            self.warning = f"splintr encodes {text[:20]!r} … unlike tiktoken, which goes on alone and is slower"  # noqa: E501
        return ids


def _splintr(tokens: Sequence[bytes]) -> Callable[[str], bytes] | None:
    try:
        from splintr import Tokenizer
    except ImportError:
        return None
    return Tokenizer.from_bytes(bpe.format_ranks(tokens), _PATTERN, {}).encode_flat
