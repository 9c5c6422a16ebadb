"""Which text is trained on and which is kept for validation.

It depends on the text and the seed, not on the order.
"""

import hashlib
import math
from collections.abc import Iterable

import numpy as np

from nanogpt_dist.data.manifest import SplitName, SplitRuleRecord
from prepare.readers.text import TextPart

SPLITS: tuple[SplitName, ...] = ("train", "val")


def by_hash(chunks: Iterable[bytes], rule: SplitRuleRecord) -> SplitName:
    """The split of a document whose UTF-8 comes in `chunks`.

    Equal documents go to the same split, so that none is trained on and validated with.
    """
    digest = hashlib.blake2b(digest_size=8, key=rule.seed.to_bytes(8, "little"))
    for chunk in chunks:
        digest.update(chunk)
    return (
        "val" if int.from_bytes(digest.digest(), "little") < rule.val_fraction * 2**64 else "train"
    )


def shuffled_val_rows(rows: int, rule: SplitRuleRecord) -> np.ndarray:
    """The rows kept for validation, as datasets' `train_test_split` draws them, sorted.

    It is called with `test_size=val_fraction, seed=seed`.
    """
    val_rows = math.ceil(rule.val_fraction * rows)
    return np.sort(np.random.default_rng(rule.seed).permutation(rows)[:val_rows])


def character_border(text: TextPart, rule: SplitRuleRecord) -> int:
    """The byte at which the train part of a text ends, rounded as nanoGPT does.

    Counted behind the byte order mark.

    Raises BadDataError for what is not UTF-8.
    """
    characters = sum(len(chunk) for chunk in text)
    left = int(characters * (1 - rule.val_fraction))
    border = 0
    for chunk in text:
        border += len(chunk[:left].encode())
        left -= min(left, len(chunk))
        if not left:
            break
    return border
