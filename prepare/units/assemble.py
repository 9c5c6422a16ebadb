"""Encoded units to shards, in order, while others are still being encoded.

Shard borders depend on the ids alone.
"""

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from nanogpt_dist.data import SHARD_TOKENS, ShardWriter
from nanogpt_dist.data.manifest import SplitName
from nanogpt_dist.errors import StorageError
from nanogpt_dist.storage.durable import shown, storage_errors
from nanogpt_dist.tokenizer import Tokenizer
from prepare.recipe import Recipe
from prepare.units.encode import EMPTY, REPLACED, SKIPPED, WHOLE, unit_path
from prepare.units.journal import WorkFolder
from prepare.units.limits import Quotas
from prepare.units.plan import Unit
from prepare.units.split import SPLITS

READ_BYTES = 8 << 20


@dataclass
class Tally:
    """Counts of what went into the shards.

    documents, bytes: of each split; by_ingredient: [tokens, documents] of each.
    """

    documents: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    empty: int = 0
    replaced: int = 0
    skipped: int = 0
    special: int = 0
    by_ingredient: list[list[int]] = field(default_factory=list)

    def add(self, documents: np.ndarray, ingredient: int) -> None:
        """Count rows of DOCUMENT."""
        ended = documents[documents["ends"]]
        real = np.isin(ended["status"], (WHOLE, REPLACED))
        for index, split in enumerate(SPLITS):
            self.documents[split] += int((real & (ended["split"] == index)).sum())
            self.bytes[split] += int(documents["bytes"][documents["split"] == index].sum())
        self.empty += int((ended["status"] == EMPTY).sum())
        self.replaced += int((ended["status"] == REPLACED).sum())
        self.skipped += int((ended["status"] == SKIPPED).sum())
        self.special += int(documents["special"].sum())
        self.by_ingredient[ingredient][0] += int(documents["tokens"].sum())
        self.by_ingredient[ingredient][1] += int(real.sum())


class Assembler:
    """Writes both splits of an output folder from its units, behind the shards there.

    with Assembler(work, recipe, tokenizer, units) as assembler:
        while not assembler.advance():
            ...  # encode more of assembler.missing()
    """

    def __init__(
        self,
        work: WorkFolder,
        recipe: Recipe,
        tokenizer: Tokenizer,
        units: Sequence[Unit],
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self.work, self.recipe, self.units = work, recipe, units
        self.dtype = tokenizer.dtype
        self.writers: dict[SplitName, ShardWriter] = {}
        self.committed: dict[SplitName, int] = {}
        for split in SPLITS:
            done = work.good_shards(recipe.name, split)
            self.writers[split] = ShardWriter(
                work.out, recipe.name, split, tokenizer, shard_tokens, done
            )
            self.committed[split] = sum(shard.tokens for shard in done)
        self.tally = Tally(by_ingredient=[[0, 0] for _ in recipe.ingredients])
        self.position = dict.fromkeys(SPLITS, 0)  # ids of the units so far
        self.parts: dict[SplitName, deque[tuple[int, Path]]] = {split: deque() for split in SPLITS}
        self.quotas = Quotas(work, recipe, units)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for writer in self.writers.values():
            self._open.enter_context(writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, at)

    def missing(self) -> list[Unit]:
        """The units to encode: some of their ids are in no shard and in no file.

        Their records go, so that nobody waits for what is not there.
        """
        needed = dict(self._needed())
        missing = [
            unit for unit in self.units if not self._has(unit, needed.get(unit.index, SPLITS))
        ]
        for unit in missing:
            self.work.forget(unit.index)
        return missing

    def _needed(self) -> Iterator[tuple[int, Sequence[SplitName]]]:
        """Of the first units the splits whose ids are not all in shards; none beyond a limit."""
        quotas, position = Quotas(self.work, self.recipe, self.units), dict.fromkeys(SPLITS, 0)
        for unit, _, documents in quotas.new():
            for index, split in enumerate(SPLITS):
                position[split] += int(documents["tokens"][documents["split"] == index].sum())
            yield (
                unit.index,
                [split for split in SPLITS if position[split] > self.committed[split]],
            )
        for unit in self.units:
            if not quotas.wants(unit) and self.work.read(unit.index) is None:
                yield unit.index, ()

    def _has(self, unit: Unit, splits: Sequence[SplitName]) -> bool:
        """Whether a unit's ids of `splits` are there, in files of their full length."""
        if not splits:
            return True
        found = self.work.read(unit.index)
        if found is None:
            return False
        sizes = {"train": found[0].train, "val": found[0].val}
        return all(self.work.has(unit.index, split, sizes[split]) for split in splits)

    def advance(self) -> bool:
        """Append all finished units whose turn it is; whether that was the last.

        Raises StorageError.
        """
        for unit, record, documents in self.quotas.new():
            self.tally.add(documents, unit.ingredient)
            sizes = {"train": record.train, "val": record.val}
            for index, split in enumerate(SPLITS):
                self._put_in_split(
                    unit, split, documents[documents["split"] == index], sizes[split]
                )
        return self.quotas.complete

    def finish(self) -> None:
        """Commit the last shard of each split."""
        for writer in self.writers.values():
            writer.close()
        self._note_commits()

    def _put_in_split(
        self,
        unit: Unit,
        split: SplitName,
        documents: np.ndarray,
        expected: tuple[int, int],
    ) -> None:
        stops = np.cumsum(documents["tokens"])
        tokens = int(stops[-1]) if len(stops) else 0
        first = self.position[split]
        self.position[split] += tokens
        path = unit_path(self.work.units, unit.index, split)
        self.parts[split].append((self.position[split], path))
        # these are in shards of an earlier process
        skip = min(max(self.committed[split] - first, 0), tokens)
        if skip < tokens:
            ends = stops[documents["ends"] & (documents["tokens"] > 0)]
            self._copy(unit, path, split, skip, tokens, ends, expected)
        self._note_commits()

    def _copy(
        self,
        unit: Unit,
        path: Path,
        split: SplitName,
        start: int,
        stop: int,
        ends: np.ndarray,
        expected: tuple[int, int],
    ) -> None:
        """Append ids start … stop of a unit's file to the split, after a look at its checksum."""
        crc = size = 0
        with storage_errors(path), path.open("rb") as file:
            while data := file.read(READ_BYTES):
                crc, size = zlib.crc32(data, crc), size + len(data)
            if (size, crc) != expected:
                raise self._damaged(unit)
            width = self.dtype.itemsize
            file.seek(start * width)
            while start < stop:
                ids = np.frombuffer(file.read(min(READ_BYTES, (stop - start) * width)), self.dtype)
                low, high = np.searchsorted(ends, [start, start + len(ids)], side="right")
                self.writers[split].write(ids, ends[low:high] - start)
                start += len(ids)

    def _note_commits(self) -> None:
        """Record the shards that have become durable, and remove what only they needed."""
        for split, writer in self.writers.items():
            known = self.committed[split]
            before = 0
            for shard in writer.records:
                before += shard.tokens
                if before > known:
                    self.work.record_shard(shard)
            self.committed[split] = max(known, before)
            parts = self.parts[split]
            while parts and parts[0][0] <= self.committed[split]:
                parts.popleft()[1].unlink(missing_ok=True)

    def _damaged(self, unit: Unit) -> StorageError:
        self.work.forget(unit.index)
        return StorageError(
            f"{shown(self.work.units)}: unit {unit.index} was damaged on the disk; run the same "
            "command again"
        )
