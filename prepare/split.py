"""Which text is trained on and which is kept for validation. It depends on the text and the seed, not on the order."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from nanogpt_dist.shards.manifest import SplitName, SplitRuleRecord
from prepare.documents import read_documents
from prepare.recipe import Recipe
from prepare.sources import Sources

SPLITS: tuple[SplitName, ...] = ("train", "val")


@dataclass(frozen=True)
class Text:
    """A document, or the part of one that lies in a split. read_bytes: of all sources so far."""

    split: SplitName
    text: str
    read_bytes: int


@dataclass
class Tally:
    """Documents and UTF-8 bytes of each split; empty: documents without a character, which go into none."""

    documents: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    empty: int = 0

    def add(self, text: Text) -> None:
        if text.text:
            self.documents[text.split] += 1
            self.bytes[text.split] += len(text.text.encode())
        else:
            self.empty += 1


def split_texts(recipe: Recipe, sources: Sources) -> Iterator[Text]:
    """Every document of the sources, in order, with its split. Raises BadDataError, StorageError."""
    before = 0
    for file, record in zip(sources.files, recipe.files, strict=True):
        assert file.path is not None
        for document in read_documents(file.path, recipe.column or ""):
            read = before + document.read_bytes
            if recipe.split.rule == "characters":
                train_fraction = 1 - recipe.split.val_fraction
                border = int(len(document.text) * train_fraction)  # rounded as nanoGPT does
                yield Text("train", document.text[:border], before + int(document.read_bytes * train_fraction))
                yield Text("val", document.text[border:], read)
            else:
                yield Text(_by_hash(document.text, recipe.split), document.text, read)
        before += record.bytes


def _by_hash(text: str, split: SplitRuleRecord) -> SplitName:
    """Equal documents go to the same split, so that none is trained on and validated with."""
    key = split.seed.to_bytes(8, "little")
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
    return "val" if number < split.val_fraction * 2**64 else "train"
