"""A prepared data folder, checked when opened and when read.

`DataFolder.open(path).split("train").read(0, 1024)`

Opening looks at every size, header and small file, but hashes no shard; reading checks each MiB of
ids the first time that it is touched. Reads go through pread, so memory does not grow with what was
read; few shards are open at a time.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from nanogpt_dist.data.files import OpenFiles, read_checked, refuse_link
from nanogpt_dist.data.manifest import MANIFEST, Manifest, SplitName, SplitRecord, TokenizerRecord
from nanogpt_dist.data.shard import Shard
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import Tokenizer, id_type, load


class DataFolder:
    """What `nanogpt prepare` or `nanogpt import-shards` wrote.

    dataset_id: sha256 (hex) of manifest.json.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        dataset_id: str,
        tokenizer: Tokenizer,
    ) -> None:
        self.path, self.manifest, self.dataset_id, self.tokenizer = (
            path,
            manifest,
            dataset_id,
            tokenizer,
        )
        files = OpenFiles()
        self.splits = {
            name: Split(path, record, manifest.tokenizer, files)
            for name, record in manifest.splits.items()
        }

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder and check manifest, tokenizer, and the size and header of every shard.

        Raises MissingInputError, BadDataError, StorageError.
        """
        path = Path(path)
        manifest, dataset_id = Manifest.read(path)
        return cls(path, manifest, dataset_id, open_folder_tokenizer(path, manifest.tokenizer))

    def split(self, name: SplitName) -> "Split":
        return self.splits[name]


class Split:
    """The ids of all shards of a split, as one sequence of `tokens` ids below `n_vocab`."""

    def __init__(
        self,
        folder: Path,
        record: SplitRecord,
        tokenizer: TokenizerRecord,
        files: OpenFiles,
    ) -> None:
        self.tokens, self.documents, self.bytes = record.tokens, record.documents, record.bytes
        self.n_vocab, self.dtype = tokenizer.n_vocab, id_type(tokenizer.n_vocab)
        self._shards = [Shard(folder, shard, tokenizer, files) for shard in record.shards]
        self._starts = [0, *accumulate(shard.tokens for shard in record.shards)]

    def read(self, start: int, length: int) -> np.ndarray:
        """A copy of the ids at start … start + length, (length,) uint16 or uint32.

        It may span shards.

        Raises IndexError outside of the split, BadDataError naming the shard and its damaged MiB,
        StorageError.
        """
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"ids {start} to {start + length} of a split of {self.tokens}")
        ids = np.empty(length, self.dtype)
        done = 0
        while done < length:
            index = bisect_right(self._starts, start + done) - 1
            count = min(length - done, self._starts[index + 1] - start - done)
            self._shards[index].read_into(
                ids[done : done + count], start + done - self._starts[index]
            )
            done += count
        return ids

    def document_ends(self) -> np.ndarray:
        """(documents,) int64: the position behind the last id of each document.

        Raises BadDataError, StorageError.
        """
        parts = [
            shard.document_ends() + start
            for shard, start in zip(self._shards, self._starts, strict=False)
        ]
        return np.concatenate(parts)


def open_folder_tokenizer(folder: Path, record: TokenizerRecord) -> Tokenizer:
    """The tokenizer in a data folder, if it is the record's. Raises BadDataError, StorageError."""
    path = folder / record.file.name
    if not path.exists():
        raise BadDataError(f"{shown(path)} is missing; restore a copy or prepare the data again")
    refuse_link(path)
    tokenizer = load(path)
    if tokenizer.fingerprint != record.fingerprint:
        raise BadDataError(
            f"{shown(path)} is tokenizer {tokenizer.name} ({tokenizer.n_vocab} ids), not "
            f"{record.name} ({record.n_vocab} ids) that made the shards; restore it or prepare "
            "again"
        )
    if (tokenizer.n_vocab, tokenizer.eot_id) != (record.n_vocab, record.eot_id):
        raise BadDataError(
            f"{shown(path)} has {tokenizer.n_vocab} ids, {MANIFEST} says {record.n_vocab}, or "
            "another end of text; prepare the data again"
        )
    read_checked(path, record.file)
    return tokenizer
