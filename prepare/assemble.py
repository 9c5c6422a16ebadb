"""Encoded units to shards, in order, while others are still being encoded. Shard borders depend on the ids alone."""

import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from nanogpt_dist.errors import StorageError
from nanogpt_dist.shards import SHARD_TOKENS, ShardWriter
from nanogpt_dist.shards.manifest import SplitName
from nanogpt_dist.storage.durable import shown, told
from nanogpt_dist.tokenizer import Tokenizer
from prepare.encode import DOCUMENT, EMPTY, REPLACED, SKIPPED, WHOLE, UnitRecord, unit_path
from prepare.folder import Work
from prepare.recipe import Recipe
from prepare.split import SPLITS
from prepare.units import Unit

READ_BYTES = 8 << 20


@dataclass
class Tally:
    """What went into the shards. documents, bytes: of each split; by_ingredient: [tokens, documents] of each."""

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
    """Writes both splits of an output folder out of the units in its work folder, going on after the shards in it.

    with Assembler(work, recipe, tokenizer, units) as assembler:
        while not assembler.advance():
            ...  # encode more of assembler.missing()
    """

    def __init__(
        self, work: Work, recipe: Recipe, tokenizer: Tokenizer, units: Sequence[Unit], shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.work, self.recipe, self.units = work, recipe, units
        self.dtype = tokenizer.dtype
        self.writers: dict[SplitName, ShardWriter] = {}
        self.committed: dict[SplitName, int] = {}
        for split in SPLITS:
            done = work.good_shards(recipe.name, split)
            self.writers[split] = ShardWriter(work.out, recipe.name, split, tokenizer, shard_tokens, done)
            self.committed[split] = sum(shard.tokens for shard in done)
        self.tally = Tally(by_ingredient=[[0, 0] for _ in recipe.ingredients])
        self.position = dict.fromkeys(SPLITS, 0)  # ids of the units so far
        self.next = 0  # the first unit that is not in yet
        self.parts: dict[SplitName, deque[tuple[int, Path]]] = {split: deque() for split in SPLITS}
        self.limits = _Limits.of(recipe)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for writer in self.writers.values():
            self._open.enter_context(writer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, error, at)

    def missing(self) -> list[Unit]:
        """The units that have to be encoded, or encoded again, because ids of theirs are in no shard and no file."""
        missing = []
        known = True  # whether we know where in the splits a unit stands
        position = dict.fromkeys(SPLITS, 0)
        limits = _Limits.of(self.recipe) or self._shares()  # neither: nothing is in a shard yet
        for unit in self.units:
            if limits and limits.reached(unit.ingredient):
                continue
            record = self.work.record(unit.index)
            documents = self._documents(record) if record else None
            if record is None or documents is None:
                missing.append(unit)
                known = False
                continue
            if limits:
                documents = documents[: limits.take(unit.ingredient, documents)]
            for index, split in enumerate(SPLITS):
                position[split] += int(documents["tokens"][documents["split"] == index].sum())
            kept = {split: known and position[split] <= self.committed[split] for split in SPLITS}
            sizes = {"train": record.train, "val": record.val}
            if not all(kept[split] or self.work.has(unit.index, split, sizes[split]) for split in SPLITS):
                missing.append(unit)
        return missing

    def advance(self) -> bool:
        """Put in all units whose turn it is and that are done; whether that was the last. Raises StorageError."""
        if self.limits is None:
            self.limits = self._shares()
            if self.limits is None:
                return False
        while self.next < len(self.units):
            unit = self.units[self.next]
            if not self.limits.reached(unit.ingredient):
                record = self.work.record(unit.index)
                if record is None:
                    return False
                self._put_in(unit, record)
            self.next += 1
        return True

    def finish(self) -> None:
        """Commit the last shard of each split."""
        for writer in self.writers.values():
            writer.close()
        self._note_commits()

    def _put_in(self, unit: Unit, record: UnitRecord) -> None:
        documents = self._documents(record)
        if documents is None:
            raise self._damaged(unit)
        assert self.limits is not None
        documents = documents[: self.limits.take(unit.ingredient, documents)]
        self.tally.add(documents, unit.ingredient)
        sizes = {"train": record.train, "val": record.val}
        for index, split in enumerate(SPLITS):
            mine = documents[documents["split"] == index]
            self._put_in_split(unit, split, mine, sizes[split])

    def _put_in_split(self, unit: Unit, split: SplitName, documents: np.ndarray, expected: tuple[int, int]) -> None:
        stops = np.cumsum(documents["tokens"])
        tokens = int(stops[-1]) if len(stops) else 0
        first = self.position[split]
        self.position[split] += tokens
        path = unit_path(self.work.units, unit.index, split)
        self.parts[split].append((self.position[split], path))
        skip = min(max(self.committed[split] - first, 0), tokens)  # these are in shards of an earlier process
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
        with told(path), path.open("rb") as file:
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

    def _documents(self, record: UnitRecord) -> np.ndarray | None:
        """The rows about a unit's documents; None where they are damaged."""
        path = unit_path(self.work.units, record.unit, "documents")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        return np.frombuffer(data, DOCUMENT) if (len(data), zlib.crc32(data)) == record.documents else None

    def _damaged(self, unit: Unit) -> StorageError:
        self.work.forget(unit.index)
        return StorageError(
            f"{shown(self.work.units)}: unit {unit.index} was damaged on the disk; run the same command again"
        )

    def _shares(self) -> "_Limits | None":
        """The limits of a mix: as many tokens as its parts allow at their weights. None: not all units are done yet."""
        records = [self.work.record(unit.index) for unit in self.units]
        totals = [0] * len(self.recipe.ingredients)
        for unit, record in zip(self.units, records, strict=True):
            documents = self._documents(record) if record else None
            if documents is None:
                return None
            totals[unit.ingredient] += int(documents["tokens"].sum())
        weights = [ingredient.weight or 1.0 for ingredient in self.recipe.ingredients]
        whole = min(total / weight for total, weight in zip(totals, weights, strict=True))
        return _Limits([None] * len(weights), [int(whole * weight + 1e-6) for weight in weights])


class _Limits:
    """How much more may be taken of each ingredient: documents and tokens, None for all of it."""

    def __init__(self, documents: list[int | None], tokens: list[int | None]) -> None:
        self.documents, self.tokens = documents, tokens
        self.full = [False] * len(tokens)

    @classmethod
    def of(cls, recipe: Recipe) -> "_Limits | None":
        """The limits that a recipe sets; None for a mix, whose parts limit each other."""
        mixed = recipe.ingredients[0].weight is not None
        if not mixed:
            return cls([recipe.max_documents], [recipe.max_tokens])
        if recipe.max_tokens is None:
            return None
        shares = [int(recipe.max_tokens * (ingredient.weight or 1.0) + 1e-6) for ingredient in recipe.ingredients]
        return cls([None] * len(shares), list(shares))

    def reached(self, ingredient: int) -> bool:
        """Whether nothing more of it is wanted."""
        return self.full[ingredient]

    def take(self, ingredient: int, documents: np.ndarray) -> int:
        """How many rows of DOCUMENT to take; whole documents, and no more once one did not fit."""
        wanted = len(documents)
        left, budget = self.documents[ingredient], self.tokens[ingredient]
        if left is not None:
            real = np.cumsum(np.isin(documents["status"], (WHOLE, REPLACED)) & documents["ends"])
            wanted = min(wanted, int(np.searchsorted(real, left)) + 1)
            taken = int(real[wanted - 1]) if wanted else 0
            self.documents[ingredient] = left - taken
            self.full[ingredient] = left <= taken
        if budget is not None:
            stops = np.cumsum(documents["tokens"])
            fitting = int(np.searchsorted(stops, budget, side="right"))
            if fitting < wanted:
                wanted, self.full[ingredient] = fitting, True
            taken = int(stops[wanted - 1]) if wanted else 0
            self.tokens[ingredient] = budget - taken
            self.full[ingredient] = self.full[ingredient] or budget <= taken
        return wanted
