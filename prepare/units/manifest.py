"""The manifest: made from the shards, and compared with one that is there."""

from collections.abc import Mapping
from typing import Any

from nanogpt_dist.data.manifest import (
    CountsRecord,
    FileRecord,
    Manifest,
    SplitRecord,
    TokenizerRecord,
)
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import sha256_file
from nanogpt_dist.tokenizer import Tokenizer
from prepare.readers.formats import Format
from prepare.recipe import Recipe, source_key
from prepare.units.assemble import Assembler
from prepare.units.journal import TOKENIZER, WorkFolder
from prepare.units.split import SPLITS


def make_manifest(
    work: WorkFolder,
    recipe: Recipe,
    tokenizer: Tokenizer,
    assembler: Assembler,
) -> Manifest:
    """The manifest of the shards that `assembler` has written."""
    saved, tally = work.out / TOKENIZER, assembler.tally
    shards = {split: assembler.writers[split].records for split in SPLITS}
    return Manifest(
        name=recipe.name,
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            spec=recipe.spec,
            n_vocab=tokenizer.n_vocab,
            eot_id=tokenizer.eot_id,
            fingerprint=tokenizer.fingerprint,
            probe=tokenizer.probe(),
            file=FileRecord(name=TOKENIZER, bytes=saved.stat().st_size, sha256=sha256_file(saved)),
        ),
        eot=recipe.eot_of(tokenizer),
        errors=recipe.errors,
        max_documents=recipe.max_documents,
        max_tokens=recipe.max_tokens,
        counts=CountsRecord(
            empty=tally.empty, replaced=tally.replaced, skipped=tally.skipped, special=tally.special
        ),
        splits={
            split: SplitRecord(
                tokens=sum(shard.tokens for shard in shards[split]),
                documents=tally.documents[split],
                bytes=tally.bytes[split],
                shards=shards[split],
            )
            for split in SPLITS
        },
        sources=[
            ingredient.record(tokens, documents)
            for ingredient, (tokens, documents) in zip(
                recipe.ingredients, tally.by_ingredient, strict=True
            )
        ],
    )


def pinned_sources(made: Manifest) -> list[Mapping[str, Any]]:
    """The sources of a finished folder, as Recipe.key has them."""
    return [source_key(source) for source in made.sources]


def key_of(made: Manifest, recipe: Recipe) -> dict[str, Any]:
    """The key of the recipe that a finished folder was made with.

    What the folder does not tell is taken from `recipe`.
    """
    return {
        "corpus": made.name,
        "tokenizer": made.tokenizer.spec,
        "fingerprint": made.tokenizer.fingerprint if recipe.known else None,
        "eot": made.eot or recipe.eot,
        "errors": made.errors,
        "max_documents": made.max_documents,
        "max_tokens": made.max_tokens,
        "sources": pinned_sources(made),
    }


def refuse_empty_split(recipe: Recipe, assembler: Assembler) -> None:
    """Raises BadDataError where train or val has got nothing."""
    tally = assembler.tally
    total = sum(tally.documents.values())
    if not total:
        if recipe.max_tokens:
            raise BadDataError(
                f"no document fits into --max-tokens {recipe.max_tokens:,}; give more"
            )
        if len(recipe.ingredients) > 1:
            raise BadDataError(
                "a part of the mix has no text, so nothing can be taken of the others; leave it out"
            )
        if tally.skipped:
            raise BadDataError(
                f"every document was skipped ({tally.skipped:,}); --errors strict tells what is in "
                "the first"
            )
        raise BadDataError(
            f"there is no text in the sources ({tally.empty} empty documents); give others"
        )
    rule = recipe.ingredients[0].split
    for split in SPLITS:
        if not assembler.position[split]:
            advice = (
                f"{'raise' if split == 'val' else 'lower'} --val-fraction (now "
                f"{rule.val_fraction:g})"
            )
            if total == 1 and rule.rule == "documents":
                advice = _for_one_document(recipe)
            raise BadDataError(
                f"the {split} split got none of {total} documents; {advice}, or add text"
            )


def _for_one_document(recipe: Recipe) -> str:
    """What to do about a single document, which cannot go to both splits."""
    only = recipe.ingredients[0]
    if recipe.takes_parts:
        return (
            "one document cannot go to both, and a part of it is not taken: leave limits and --mix "
            "out"
        )
    if len(only.files) == 1 and only.format(0) == Format("text"):
        return "one document cannot go to both: for a single text type --split-by characters"
    return "one document cannot go to both: give it as one .txt, which is cut in two"
