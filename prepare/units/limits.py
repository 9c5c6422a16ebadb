"""How much of each ingredient is taken: documents, tokens, weights of a mix.

Whole documents, in order.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from prepare.recipe import Recipe
from prepare.units.encode import REPLACED, WHOLE, UnitRecord
from prepare.units.journal import WorkFolder
from prepare.units.plan import Unit


class Limits:
    """How much more may be taken of each ingredient: documents and tokens, None for all of it."""

    def __init__(self, documents: Sequence[int | None], tokens: Sequence[int | None]) -> None:
        self.documents, self.tokens = list(documents), list(tokens)
        self.full = [False] * len(self.tokens)
        self.taken = [0] * len(self.tokens)  # tokens of each ingredient

    def take(self, ingredient: int, documents: np.ndarray) -> int:
        """How many rows of encode.DOCUMENT to take.

        Whole documents, and no more once one did not fit.
        """
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
        self.taken[ingredient] += int(documents["tokens"][:wanted].sum())
        return wanted


class Quotas:
    """The units whose turn it is, as far as they are done, each with the documents to take of it.

    A mix begins only when it is known how much each ingredient has: the scarcest one decides how
    much is taken of all.
    """

    def __init__(self, work: WorkFolder, recipe: Recipe, units: Sequence[Unit]) -> None:
        self.work, self.units = work, units
        self.next = 0  # the first unit that was not taken yet
        self.max_tokens = recipe.max_tokens
        self.weights = [ingredient.weight or 1.0 for ingredient in recipe.ingredients]
        self.mixed = recipe.ingredients[0].weight is not None
        self.limits = None if self.mixed else Limits([recipe.max_documents], [recipe.max_tokens])
        self.waiting = [
            [unit for unit in reversed(units) if unit.ingredient == i]
            for i in range(len(self.weights))
        ]
        # tokens of each ingredient's units, in order, as far as they are done
        self.totals = [0] * len(self.weights)

    def wants(self, unit: Unit) -> bool:
        """Whether something of the unit may be taken, as far as one can know yet."""
        self._look()
        if self.limits is not None:
            return not self.limits.full[unit.ingredient]
        return bool(self.waiting[unit.ingredient])

    def new(self) -> Iterator[tuple[Unit, UnitRecord, np.ndarray]]:
        """What can be taken now and was not yet.

        It ends where a unit is missing, and can be asked again later.
        """
        self._look()
        while self.limits is not None and self.next < len(self.units):
            unit = self.units[self.next]
            if not self.limits.full[unit.ingredient]:
                found = self.work.read(unit.index)
                if found is None:
                    return
                record, documents = found
                self.next += 1
                yield unit, record, documents[: self.limits.take(unit.ingredient, documents)]
            else:
                self.next += 1

    @property
    def complete(self) -> bool:
        """Whether all was taken."""
        return self.limits is not None and self.next == len(self.units)

    def without_tokens(self) -> list[int]:
        """The ingredients of a mix that gave nothing, once all is taken.

        Mostly since their first document is too large.
        """
        return (
            [i for i, taken in enumerate(self.limits.taken) if not taken]
            if self.mixed and self.limits
            else []
        )

    def _look(self) -> None:
        """Of a mix: count what is done, until each ingredient has enough or has given all."""
        if self.limits is not None:
            return
        for ingredient, waiting in enumerate(self.waiting):
            while waiting and (found := self.work.read(waiting[-1].index)) is not None:
                waiting.pop()
                self.totals[ingredient] += int(found[1]["tokens"].sum())
                if (
                    self.max_tokens
                    and self.totals[ingredient] >= self.max_tokens * self.weights[ingredient]
                ):
                    waiting.clear()
        if not any(self.waiting):
            whole = min(
                total / weight for total, weight in zip(self.totals, self.weights, strict=True)
            )
            whole = min(whole, self.max_tokens or whole)
            self.limits = Limits(
                [None] * len(self.weights), [int(whole * weight + 1e-6) for weight in self.weights]
            )
