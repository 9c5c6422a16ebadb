"""The documents of a split, by number, and those that a window of tokens overlaps."""

import numpy as np

from nanogpt_dist.data.batches import Batches, DocumentStarts
from nanogpt_dist.data.manifest import SplitName
from nanogpt_dist.data.reader import DataFolder
from nanogpt_dist.errors import ConfigError, UsageError


def document_starts(data: DataFolder) -> DocumentStarts:
    """How a document of `data` is known to start. Raises ConfigError where nothing tells it."""
    eot, eot_id = data.manifest.eot, data.tokenizer.eot_id
    if eot is None or eot_id is None:
        raise ConfigError(
            f"{data.path} has no end of text between its documents: leave --align-documents out"
        )
    return DocumentStarts(eot_id, behind=eot == "append")


class Documents:
    """The documents of one split, counted from 0. Holds the end of each: 8 bytes a document."""

    def __init__(self, data: DataFolder, split: SplitName) -> None:
        """Raises BadDataError, StorageError."""
        self.name, self.split, self.eot_id = split, data.split(split), data.tokenizer.eot_id
        self.eot = data.manifest.eot
        self.ends = self.split.document_ends()

    def __len__(self) -> int:
        return len(self.ends)

    def ids(self, number: int) -> np.ndarray:
        """The ids of a document, (N,), without its end of text.

        Raises UsageError for a number that is not there.
        """
        if not 0 <= number < len(self):
            raise UsageError(
                f"no document {number:,}: {self.name} has {len(self):,}; give 0 to {len(self) - 1}"
            )
        start = int(self.ends[number - 1]) if number else 0
        ids = self.split.read(start, int(self.ends[number]) - start)
        if self.eot == "append" and len(ids) and ids[-1] == self.eot_id:
            return ids[:-1]
        return ids[1:] if self.eot == "prepend" and len(ids) and ids[0] == self.eot_id else ids

    def overlapping(self, start: int, length: int) -> tuple[int, int]:
        """The first and the last document that have ids among the `length` ≥ 1 from `start`.

        Ids behind the last document's end, where there are any, count as one more document.
        """
        first, last = np.searchsorted(self.ends, [start, start + length - 1], side="right")
        return int(first), int(last)


def documents_of_step(data: DataFolder, batches: Batches, step: int) -> list[int]:
    """Numbers of the train split's documents in the batch of step number `step` (from 1).

    Over all ranks. Raises BadDataError, StorageError.
    """
    documents, length = Documents(data, "train"), batches.at(step - 1).length
    starts = batches.align(batches.starts(step - 1), length)
    spans = (documents.overlapping(int(start), length + 1) for start in starts)
    return sorted({number for first, last in spans for number in range(first, last + 1)})
