"""Tokenizers that are made from the text: its characters, or byte pairs learnt from its train split."""

from collections.abc import Callable, Iterator

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.tokenizer import Tokenizer, bpe_size, char, train_bpe
from prepare.recipe import Recipe
from prepare.sources import Sources
from prepare.split import split_texts

TRAIN_BPE_BYTES = 256 << 20  # read this much of the sources at most to learn a BPE


def make_tokenizer(recipe: Recipe, sources: Sources, progress: Callable[[int], None]) -> Tokenizer:
    """The recipe's tokenizer. Characters come from both splits, as in nanoGPT; byte pairs from the train split only.

    progress: told the bytes of the sources read so far. Raises UsageError, BadDataError, StorageError.
    """
    if recipe.known:
        return recipe.known
    if recipe.spec == "char":
        return char(_texts(recipe, sources, progress))
    size = bpe_size(recipe.spec)
    assert size is not None
    return train_bpe(_train_texts(recipe, sources, progress), size)


def _texts(recipe: Recipe, sources: Sources, progress: Callable[[int], None]) -> Iterator[str]:
    for text in split_texts(recipe, sources):
        progress(text.read_bytes)
        yield text.text


def _train_texts(recipe: Recipe, sources: Sources, progress: Callable[[int], None]) -> Iterator[str]:
    documents = 0
    for text in split_texts(recipe, sources):
        if text.split == "train" and text.text:
            documents += 1
            progress(text.read_bytes)
            yield text.text
        if text.read_bytes > TRAIN_BPE_BYTES:
            break
    if not documents:
        raise BadDataError(f"no document to learn {recipe.spec} from; lower --val-fraction or add text")
