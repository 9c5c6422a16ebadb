"""The units that one process sees to: which they are, and encoding them while files come and go."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nanogpt_dist.tokenizer import Tokenizer
from prepare.recipe import Recipe
from prepare.sources.files import SourceFiles
from prepare.units.encode import Job
from prepare.units.journal import TOKENIZER, WorkFolder
from prepare.units.limits import Quotas
from prepare.units.plan import Unit, parts_of
from prepare.units.pool import encode_units
from prepare.units.ranks import Ranks

SMALL_BYTES = 2 << 20  # below this, starting workers takes longer than they save


@dataclass(frozen=True)
class UnitEncoder:
    """What it takes to encode units of a plan.

    workers: None: one per core that is ours, at most 8. note: told of what is odd.
    """

    work: WorkFolder
    recipe: Recipe
    tokenizer: Tokenizer
    source_files: list[SourceFiles]
    workers: int | None
    ranks: Ranks
    note: Callable[[str], None]

    def encode(self, units: Sequence[Unit], quotas: Quotas) -> Iterator[tuple[Unit, int]]:
        """Encode this rank's `units` as long as they are wanted; yields each with its tokens.

        Raises BadDataError, StorageError, HubUnavailableError.
        """
        mine = [unit for unit in units if self._is_mine(unit)]
        needs = _Needs(mine, self.source_files)
        small = sum(unit.bytes for unit in mine) <= SMALL_BYTES
        workers = 1 if small else max(1, min(self.workers or default_workers(), len(mine)))
        jobs = self._jobs(mine, quotas, needs)
        warned = False  # each worker would
        by_index = {unit.index: unit for unit in mine}
        for record in encode_units(
            jobs, self.work.out / TOKENIZER, self.work.units, workers, self.work.trace
        ):
            unit = by_index[record.unit]
            needs.met(unit)
            if record.warning and not warned:
                self.note(f"warning: {record.warning}")
                warned = True
            yield unit, (record.train[0] + record.val[0]) // self.tokenizer.dtype.itemsize

    def _is_mine(self, unit: Unit) -> bool:
        """Files of the hub are shared out whole, or each rank would fetch them all."""
        on_hub = self.recipe.ingredients[unit.ingredient].corpus.origin == "hub"
        return (unit.slices[0].file if on_hub else unit.index) % self.ranks.size == self.ranks.rank

    def _jobs(self, mine: Sequence[Unit], quotas: Quotas, needs: "_Needs") -> Iterator[Job]:
        limited = quotas.mixed or any(self._limits())
        for position, unit in enumerate(mine):
            if self.work.finished or not quotas.wants(unit):
                continue
            if not limited:
                needs.expect(mine[position + 1 :][:1])
            ingredient = self.recipe.ingredients[unit.ingredient]
            max_documents, max_tokens = self._limits()
            yield Job(
                unit=unit.index,
                plan=self.work.digest,
                slices=parts_of(
                    unit, ingredient, self.source_files[unit.ingredient], self.recipe.errors
                ),
                split=ingredient.split,
                eot=self.recipe.eot_of(self.tokenizer),
                max_documents=max_documents,
                max_tokens=max_tokens,
            )

    def _limits(self) -> tuple[int | None, int | None]:
        return self.recipe.max_documents, self.recipe.max_tokens


class _Needs:
    """Which files are still needed, so that each is released with the last unit that reads it."""

    def __init__(self, units: Sequence[Unit], source_files: list[SourceFiles]) -> None:
        self.source_files = source_files
        self.left: dict[tuple[int, int], int] = {}
        for unit in units:
            for file in unit.files:
                self.left[unit.ingredient, file] = self.left.get((unit.ingredient, file), 0) + 1

    def expect(self, units: Sequence[Unit]) -> None:
        """These come next."""
        for unit in units:
            for file in unit.files:
                self.source_files[unit.ingredient].expect(file)

    def met(self, unit: Unit) -> None:
        """The unit is done."""
        for file in unit.files:
            self.left[unit.ingredient, file] -= 1
            if not self.left[unit.ingredient, file]:
                self.source_files[unit.ingredient].release(file)


def default_workers() -> int:
    """One process for each usable core, at most 8; fewer beside other ranks of torchrun."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    ranks = int(here) if re.fullmatch("[0-9]{1,9}", here) else 1
    return max(1, min(cores, 8) // max(1, ranks))


@dataclass
class UnitProgress:
    """Bytes and tokens of the units that are done, of all ranks, for a progress bar."""

    work: WorkFolder
    units: Sequence[Unit]
    ranks: Ranks
    report: Callable[[str, int, int, int], None]
    tokens: int = 0

    def start(self, missing: Sequence[Unit]) -> None:
        """missing: the units that are not done yet."""
        self.total = sum(unit.bytes for unit in self.units)
        self.bytes = self.total - sum(unit.bytes for unit in missing)
        self.report("tokens", self.bytes, self.total, 0)

    def done(self, unit: Unit, tokens: int) -> None:
        self.bytes += unit.bytes
        self.tokens += tokens
        self.look()

    def look(self) -> None:
        """Report how far the work is."""
        if self.ranks.size > 1:
            self.bytes = sum(
                self.units[index].bytes for index in self.work.done() if index < len(self.units)
            )
        self.report("tokens", self.bytes, self.total, self.tokens)
