"""A data folder as an object: splits, documents, and the windows of any training step."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_dist.config import TrainConfig, ramps
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Batches, Order
from nanogpt_dist.data.documents import Documents, document_starts
from nanogpt_dist.data.manifest import SplitName
from nanogpt_dist.tokenizer import Tokenizer

SEED: int = TrainConfig.model_fields["seed"].default


def open_dataset(folder: str | Path) -> "Dataset":
    """Open a data folder that `nanogpt prepare` or `nanogpt import-shards` wrote, and check it.

    Every size, header and small file is looked at; ids are checked as they are read.

    Raises: MissingInputError, BadDataError, StorageError.

    >>> data = ng.open_dataset("data/python-stdlib")
    >>> data.train.tokens, data.train.text(0)
    """
    return Dataset(DataFolder.open(folder))


class Dataset:
    """A data folder: its splits, their documents, and what training reads in which step.

    path: the folder. dataset_id: sha256 of its manifest, which settles its bytes. manifest: where
    it came from. tokenizer: that made its ids.
    """

    def __init__(self, folder: DataFolder) -> None:
        self.folder, self.path = folder, folder.path
        self.dataset_id, self.manifest = folder.dataset_id, folder.manifest
        self.tokenizer: Tokenizer = folder.tokenizer

    def __repr__(self) -> str:
        return f"<Dataset {self.path}: {self.train.tokens:,} + {self.val.tokens:,} tokens>"

    @cached_property
    def train(self) -> "DatasetSplit":
        """The split that training reads."""
        return DatasetSplit(self.folder, "train")

    @cached_property
    def val(self) -> "DatasetSplit":
        """The split that evaluation reads."""
        return DatasetSplit(self.folder, "val")

    def split(self, name: SplitName) -> "DatasetSplit":
        """The split of that name."""
        return self.train if name == "train" else self.val

    def windows(
        self,
        step: int,
        *,
        batch_size: int,
        block_size: int,
        seed: int = SEED,
        **settings: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs x and targets y of a training step, over all ranks: each (batch_size, T) int64.

        step: steps made before it; 0 is the first. batch_size: sequences of the step, which is
        `batch_size × gradient_accumulation_steps` of the settings. T = block_size. y[b, t] is the
        token after x[b, t]. settings: batch_ramp, context_ramp and align_documents, as a run has
        them; a ramp says of each step how many sequences it has, and of how many tokens.

        Raises: BadDataError where the split is shorter than a window, or damaged.

        >>> x, y = data.windows(0, batch_size=8, block_size=128)
        """
        [pair] = self._batches(batch_size, block_size, seed, **settings).of(step)
        return pair

    def window_starts(
        self,
        step: int,
        *,
        batch_size: int,
        block_size: int,
        seed: int = SEED,
        **settings: Any,
    ) -> np.ndarray:
        """Where in the train split the windows of a step begin: (batch_size,) int64.

        settings: as windows() takes them.
        """
        batches = self._batches(batch_size, block_size, seed, **settings)
        return batches.align(batches.starts(step), batches.at(step).length)

    def _batches(
        self,
        batch_size: int,
        block_size: int,
        seed: int,
        batch_ramp: str | None = None,
        context_ramp: str | None = None,
        align_documents: bool = False,
    ) -> Batches:
        train = self.folder.split("train")
        order = Order(seed, self.dataset_id, block_size, train.tokens)
        ramp = ramps.ramp(batch_ramp, context_ramp, batch_size, block_size)
        most = max(piece.sequences for piece in ramp.pieces)
        aligned = document_starts(self.folder) if align_documents else None
        return Batches(train, order, most, most, 0, 1, ramp, aligned)


class DatasetSplit:
    """The documents of a split; iterating gives the ids of each, (N,), without its end of text.

    name: train or val. tokens: of the split, ends of text included. bytes: of its text.
    """

    def __init__(self, folder: DataFolder, name: SplitName) -> None:
        split = folder.split(name)
        self.name, self.tokens, self.bytes = name, split.tokens, split.bytes
        self._folder = folder

    @cached_property
    def documents(self) -> Documents:
        """The documents by number, `ids(i)`, and those that a window `overlapping(start, n)`."""
        return Documents(self._folder, self.name)

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.documents.ids(number) for number in range(len(self)))

    def text(self, number: int) -> str:
        """The text of a document, counted from 0. Raises: UsageError, BadDataError."""
        return self._folder.tokenizer.decode(self.documents.ids(number))

    def texts(self) -> Iterator[str]:
        """The text of each document."""
        return (self.text(number) for number in range(len(self)))

    def read(self, start: int, length: int) -> np.ndarray:
        """The ids at start … start + length, (length,) uint16 or uint32. Raises: IndexError."""
        return self._folder.split(self.name).read(start, length)
