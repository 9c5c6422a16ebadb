"""The work, cut into units: a function of the sources alone.

Workers, ranks and kills do not show.

A unit is what one worker encodes in one go, and what is done again at most when it is killed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanogpt_dist.data.manifest import Errors, SplitName, SplitRuleRecord
from nanogpt_dist.errors import BadDataError, UsageError
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.readers.tables import RowGroup
from prepare.readers.text import BOM, TextPart, next_border
from prepare.recipe import Ingredient, Recipe
from prepare.sources.files import SourceFiles
from prepare.units.split import by_hash, character_border, shuffled_val_rows

UNIT_BYTES = (1 << 20, 64 << 20)  # of sources in a unit, from small corpora to large ones
UNITS = 64  # aimed at in between
MOST_DRAWN = 2**32  # rows, of which a split is drawn: 8 bytes of memory each
PLAN_VERSION = 3  # of how sources are cut, and of what is noted about units


@dataclass(frozen=True)
class Slice:
    """start … stop of file number `file` of an ingredient, as documents.Part has them.

    size: bytes of the sources that it is. split: of all of its text, where the plan knows it;
    begins, ends: whether the document that it is a part of does so here; replaced: whether that is
    not UTF-8. rows: of a table; val_rows: those kept for validation, from 0, where the plan draws
    them.
    """

    file: int
    start: int
    stop: int
    size: int
    split: SplitName | None = None
    begins: bool = True
    ends: bool = True
    replaced: bool = False
    rows: int = 0
    val_rows: frozenset[int] | None = None

    def split_of(self, utf8: Iterable[bytes], row: int, rule: SplitRuleRecord) -> SplitName:
        """The split of row number `row` of the slice, a document whose UTF-8 comes in chunks."""
        if self.split:
            return self.split
        if self.val_rows is not None:
            return "val" if row in self.val_rows else "train"
        return by_hash(utf8, rule)


@dataclass(frozen=True)
class Unit:
    """index: among all units; ingredient: which of the recipe's; slices: of its files, in order."""

    index: int
    ingredient: int
    slices: tuple[Slice, ...]

    @property
    def bytes(self) -> int:
        return sum(piece.size for piece in self.slices)

    @property
    def files(self) -> list[int]:
        """The files that it needs, in order."""
        return list(dict.fromkeys(piece.file for piece in self.slices))


def plan_key() -> dict[str, Any]:
    """What decides how sources are cut, beside the recipe."""
    return {"plan": PLAN_VERSION, "unit_bytes": list(UNIT_BYTES), "units": UNITS}


def plan(recipe: Recipe, source_files: Sequence[SourceFiles], cuttable: bool) -> list[Unit]:
    """All units, in the order of the output.

    cuttable: whether the tokenizer lets a long text be cut at its borders.

    Raises BadDataError, StorageError, HubUnavailableError; UsageError for files that the split does
    not go with.
    """
    total = sum(file.bytes for ingredient in recipe.ingredients for file in ingredient.files)
    size = min(max(total // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    # a document is taken whole or not at all, so it is in one unit
    if recipe.takes_parts or recipe.errors == "skip":
        cuttable = False
    units: list[Unit] = []
    for number, (ingredient, files) in enumerate(
        zip(recipe.ingredients, source_files, strict=True)
    ):
        slices = [
            piece
            for file in range(len(ingredient.files))
            for piece in _slices(recipe, ingredient, files, file, size, cuttable)
        ]
        if ingredient.split.rule == "shuffled":
            slices = _drawn(slices, ingredient, recipe.max_documents)
        for group in _grouped(slices, size):
            units.append(Unit(len(units), number, tuple(group)))
    return units


def _grouped(slices: list[Slice], size: int) -> Iterator[list[Slice]]:
    """Slices in groups of about `size` bytes."""
    group: list[Slice] = []
    held = 0
    for piece in slices:
        if group and held + piece.size > size:
            yield group
            group, held = [], 0
        group.append(piece)
        held += piece.size
    if group:
        yield group


def _slices(
    recipe: Recipe,
    ingredient: Ingredient,
    files: SourceFiles,
    file: int,
    size: int,
    cuttable: bool,
) -> Iterator[Slice]:
    record = ingredient.files[file]
    form = ingredient.format(file)
    if form.kind in ("parquet", "arrow"):
        assert ingredient.column is not None
        yield from _row_slices(file, files.row_groups(file, ingredient.column), size)
    elif form.kind == "lines" and not form.compression:
        for start in range(0, record.bytes, size):
            stop = min(record.bytes, start + size)
            yield Slice(file, start, stop, stop - start)
    elif ingredient.split.rule == "characters" or (
        form == Format("text") and record.bytes > size and cuttable
    ):
        yield from _text_slices(
            recipe.errors, ingredient, files, file, size if cuttable else record.bytes
        )
    else:
        yield Slice(file, 0, record.bytes, record.bytes)


def _row_slices(file: int, groups: list[RowGroup], size: int) -> Iterator[Slice]:
    start = 0
    while start < len(groups):
        stop, bytes_, rows = start, 0, 0
        while stop < len(groups) and (stop == start or bytes_ + groups[stop].bytes <= size):
            bytes_, rows, stop = bytes_ + groups[stop].bytes, rows + groups[stop].rows, stop + 1
        yield Slice(file, start, stop, bytes_, rows=rows)
        start = stop


def _text_slices(
    errors: Errors,
    ingredient: Ingredient,
    files: SourceFiles,
    file: int,
    size: int,
) -> Iterator[Slice]:
    """Slices of one long text, whose split needs all of it to be read once."""
    path, record, form = files.path(file), ingredient.files[file], ingredient.format(file)
    whole = TextPart(path, form.compression, 0, record.bytes, errors)
    in_two = ingredient.split.rule == "characters"
    if form.compression and in_two:
        raise UsageError(
            f"--split-by characters cuts plain text only; unpack {record.name[-60:]}, or leave it "
            "out"
        )
    try:
        if not in_two:
            split = by_hash((chunk.encode() for chunk in whole), ingredient.split)
            ranges: list[tuple[SplitName, int, int]] = [(split, 0, record.bytes)]
        else:
            ranges = _both_splits(whole, ingredient, record.bytes)
    except BadDataError:
        if errors != "skip":
            raise
        # it will be met again as it is encoded, and counted
        yield Slice(file, 0, record.bytes, record.bytes)
        return
    for split, first, last in ranges:
        start = first
        while start < last:
            stop = min(last, next_border(path, start + size))
            yield Slice(
                file, start, stop, stop - start, split, start == first, stop == last, whole.replaced
            )
            start = stop


def _both_splits(
    whole: TextPart,
    ingredient: Ingredient,
    size: int,
) -> list[tuple[SplitName, int, int]]:
    border = character_border(whole, ingredient.split)
    if whole.replaced:
        raise BadDataError(
            f"{whole.path.name[-60:]} is not UTF-8, which a split by characters needs; convert it"
        )
    with whole.path.open("rb") as file:
        border += 3 if file.read(3) == BOM else 0
    return [("train", 0, border), ("val", border, size)]


def _drawn(slices: list[Slice], ingredient: Ingredient, max_documents: int | None) -> list[Slice]:
    """The slices of tables with the rows that are drawn for validation.

    Out of those that will be read.
    """
    if not all(ingredient.format(piece.file).kind in ("parquet", "arrow") for piece in slices):
        raise UsageError(
            f"the split of {ingredient.corpus.name} counts rows, of .parquet or .arrow; give "
            "--split-by documents"
        )
    total = sum(piece.rows for piece in slices)
    total = min(total, max_documents or total)
    if total > MOST_DRAWN:
        raise UsageError(
            f"{total:,} rows are too many to draw a split from; give --split-by documents"
        )
    val_rows = shuffled_val_rows(total, ingredient.split)
    drawn, first = [], 0
    for piece in slices:
        low, high = np.searchsorted(val_rows, [first, first + piece.rows])
        drawn.append(
            replace(piece, val_rows=frozenset(int(row) - first for row in val_rows[low:high]))
        )
        first += piece.rows
    return drawn


def parts_of(
    unit: Unit,
    ingredient: Ingredient,
    files: SourceFiles,
    errors: Errors,
) -> tuple[tuple[Slice, Part], ...]:
    """The slices of a unit with the files they are parts of, which are fetched if need be."""
    return tuple(
        (
            piece,
            Part(
                files.path(piece.file),
                ingredient.format(piece.file),
                piece.start,
                piece.stop,
                ingredient.column,
                errors,
            ),
        )
        for piece in unit.slices
    )
