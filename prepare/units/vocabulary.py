"""Tokenizers that are made from the text: its characters, or learnt byte pairs."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import Tokenizer, bpe_size, char, train_bpe
from prepare.recipe import Recipe
from prepare.sources.files import SourceFiles
from prepare.units.plan import Unit, parts_of
from prepare.units.split import SPLITS

TRAIN_BPE_BYTES = 256 << 20  # read this much of the sources at most to learn a BPE

Report = Callable[[int], None]  # told the bytes of the sources read so far


def make_tokenizer(
    recipe: Recipe,
    units: Sequence[Unit],
    source_files: Sequence[SourceFiles],
    report: Report,
) -> Tokenizer:
    """The recipe's tokenizer.

    Characters come from both splits, as in nanoGPT; byte pairs from the train split only.

    Raises UsageError, BadDataError, StorageError.
    """
    if recipe.known:
        return recipe.known
    if recipe.spec == "char":
        characters = {
            char for _, chunk in _texts(recipe, units, source_files, report) for char in set(chunk)
        }
        if not characters:
            raise BadDataError(
                "there is no text in the sources to take characters from; give others"
            )
        return char(characters)
    size = bpe_size(recipe.spec)
    assert size is not None
    return train_bpe(_train_texts(recipe, units, source_files, report), size)


def _train_texts(
    recipe: Recipe,
    units: Sequence[Unit],
    source_files: Sequence[SourceFiles],
    report: Report,
) -> Iterator[str]:
    budgets = [
        int(TRAIN_BPE_BYTES * (ingredient.weight or 1.0)) for ingredient in recipe.ingredients
    ]
    chosen = []
    for unit in units:
        if budgets[unit.ingredient] > 0:
            budgets[unit.ingredient] -= unit.bytes
            chosen.append(unit)
    found = False
    for split, chunk in _texts(recipe, chosen, source_files, report):
        if split == "train" and chunk:
            found = True
            yield chunk
    if not found:
        raise BadDataError(
            f"no document to learn {recipe.spec} from; lower --val-fraction or add text"
        )


def _texts(
    recipe: Recipe,
    units: Iterable[Unit],
    source_files: Sequence[SourceFiles],
    report: Report,
) -> Iterator[tuple[str, str]]:
    """All text, in chunks, each with its split."""
    read = 0
    units = list(units)
    last = {(unit.ingredient, file): unit.index for unit in units for file in unit.files}
    for unit in units:
        ingredient = recipe.ingredients[unit.ingredient]
        for piece, part in parts_of(unit, ingredient, source_files[unit.ingredient], recipe.errors):
            for row, document in enumerate(part.documents()):
                chunks = (document.text,) if isinstance(document.text, str) else document.text
                split = piece.split_of((chunk.encode() for chunk in chunks), row, ingredient.split)
                assert split in SPLITS
                yield from ((split, chunk) for chunk in chunks)
            read += piece.size
            report(read)
        for file in unit.files:
            if last[unit.ingredient, file] == unit.index:
                source_files[unit.ingredient].release(file)
