"""All that decides the bytes of a data folder, before the first document is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist.data.manifest import Eot, Errors, SourceRecord, SplitRule, SplitRuleRecord
from nanogpt_dist.errors import UsageError
from nanogpt_dist.tokenizer import Tokenizer, bpe_size
from nanogpt_dist.tokenizer.loading import open_tokenizer
from prepare.corpora import Corpus
from prepare.readers.formats import Format, format_of

SEED = 2357  # nanoGPT's for splitting OpenWebText
MIX = "mix"  # the name of a data set out of several corpora


@dataclass(frozen=True)
class Options:
    """What the user asks for; None: what the corpus says.

    val_fraction: of the documents, rows or characters. eot: where end of text goes in each
    document. errors: what to do about text that is not UTF-8. max_documents, max_tokens: of both
    splits together, from the start.
    """

    tokenizer: str | None = None
    val_fraction: float | None = None
    seed: int = SEED
    split_by: SplitRule | None = None
    column: str | None = None
    eot: Eot = "append"
    errors: Errors = "strict"
    max_documents: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Ingredient:
    """One corpus of a recipe. column: the field that is read, if files have fields; weight: its
    part of a mix.
    """

    corpus: Corpus
    files: list[SourceRecord]
    revision: str | None
    split: SplitRuleRecord
    column: str | None
    weight: float | None

    def format(self, file: int) -> Format:
        """How file number `file` is read; what has no known ending is text."""
        return format_of(self.files[file].name) or Format("text")


@dataclass(frozen=True)
class Recipe:
    """spec: gpt2, byte, char, bpe:N, tiktoken's name, or file; known: the tokenizer, unless the
    text is to make it.
    """

    name: str
    ingredients: tuple[Ingredient, ...]
    spec: str
    known: Tokenizer | None
    eot: Eot
    errors: Errors
    max_documents: int | None
    max_tokens: int | None

    @property
    def takes_parts(self) -> bool:
        """Whether there is a limit to what is taken."""
        return self.ingredients[0].weight is not None or bool(self.max_documents or self.max_tokens)

    def eot_of(self, tokenizer: Tokenizer) -> Eot | None:
        """Where documents get end of text: nowhere, where it is one text that is cut in two."""
        one_text = len(self.ingredients) == 1 and self.ingredients[0].split.rule == "characters"
        return None if one_text or tokenizer.eot_id is None else self.eot

    def key(self) -> dict[str, Any]:
        """What decides the bytes, as JSON has it."""
        return {
            "corpus": self.name,
            "tokenizer": self.spec,
            "fingerprint": self.known.fingerprint if self.known else None,
            "eot": self.eot,
            "errors": self.errors,
            "max_documents": self.max_documents,
            "max_tokens": self.max_tokens,
            "sources": [
                sources_key(
                    ingredient.corpus.name,
                    ingredient.corpus.address,
                    ingredient.corpus.config,
                    ingredient.corpus.hub_split if ingredient.corpus.origin == "hub" else None,
                    ingredient.revision,
                    ingredient.column,
                    ingredient.weight,
                    ingredient.split,
                    ingredient.files,
                )
                for ingredient in self.ingredients
            ],
        }


def sources_key(
    corpus: str,
    address: str | None,
    config: str | None,
    hub_split: str | None,
    revision: str | None,
    column: str | None,
    weight: float | None,
    split: SplitRuleRecord | None,
    files: Sequence[SourceRecord],
) -> dict[str, Any]:
    """What of a source decides the bytes, as JSON has it; the names are those of the options."""
    rule = (
        {"split-by": split.rule, "val-fraction": split.val_fraction, "seed": split.seed}
        if split
        else {}
    )
    where = {
        "corpus": corpus,
        "address": address,
        "config": config,
        "split": hub_split,
        "revision": revision,
    }
    return {
        **where,
        "column": column,
        "weight": weight,
        **rule,
        "files": [file.model_dump() for file in files],
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What two keys differ in first, in a few words, the old one first; None where they are
    equal.
    """
    for name in ("corpus", "tokenizer"):
        if old[name] != new[name]:
            return f"{name} {old[name]}, not {new[name]}"
    if old["fingerprint"] != new["fingerprint"]:
        return "another tokenizer of that name"
    if len(old["sources"]) != len(new["sources"]):
        return f"{len(old['sources'])} sources, not {len(new['sources'])}"
    for a, b in zip(old["sources"], new["sources"], strict=True):
        if a["files"] != b["files"]:
            return f"other source files ({len(a['files'])}, now {len(b['files'])}, or changed ones)"
        for name, value in a.items():
            if name != "files" and value != b.get(name):
                return (
                    f"{'' if name in ('corpus', 'address', 'weight') else '--'}{name} {value}, not "
                    f"{b.get(name)}"
                )
    for name in ("eot", "errors", "max_documents", "max_tokens"):
        if old[name] != new[name]:
            return f"--{name.replace('_', '-')} {old[name]}, not {new[name]}"
    return None if old == new else "another version of nanogpt, or other units"


def make_ingredient(
    corpus: Corpus,
    files: list[SourceRecord],
    revision: str | None,
    options: Options,
    weight: float | None = None,
) -> Ingredient:
    """A corpus with the options on top. Raises UsageError where they do not go together."""
    val_fraction = corpus.val_fraction if options.val_fraction is None else options.val_fraction
    if not 0 < val_fraction < 1:
        raise UsageError(
            f"--val-fraction {val_fraction:g} is not between 0 and 1; type for example 0.05"
        )
    formats = [format_of(file.name) or Format("text") for file in files]
    one_text = len(files) == 1 and not formats[0].has_fields
    plain = one_text and files[0].name.lower().endswith(".txt")
    rule = (
        options.split_by
        or corpus.split
        or ("characters" if plain and weight is None else "documents")
    )
    if rule == "characters" and not one_text:
        raise UsageError(
            "a split by characters cuts one text in two; "
            f"{files[0].name[-40:]}{' …' if len(files) > 1 else ''} holds documents: type "
            "--split-by documents"
        )
    has_fields = any(form.has_fields for form in formats)
    return Ingredient(
        corpus=corpus,
        files=files,
        revision=revision,
        split=SplitRuleRecord(rule=rule, val_fraction=val_fraction, seed=options.seed),
        column=(options.column or corpus.column) if has_fields else None,
        weight=weight,
    )


def make_recipe(ingredients: list[Ingredient], options: Options) -> Recipe:
    """The recipe for one ingredient, or a mix of several. Raises UsageError, MissingInputError,
    BadDataError.
    """
    mixed = ingredients[0].weight is not None
    if mixed and options.max_documents:
        raise UsageError(
            "--max-documents says nothing about the parts of a --mix; give --max-tokens"
        )
    spec = options.tokenizer or ("gpt2" if mixed else ingredients[0].corpus.tokenizer)
    made_of_text = spec == "char" or bpe_size(spec) is not None
    recipe = Recipe(
        name=MIX if mixed else ingredients[0].corpus.name,
        ingredients=tuple(ingredients),
        spec="file" if not made_of_text and Path(spec).suffix in (".json", ".tiktoken") else spec,
        known=None if made_of_text else open_tokenizer(spec),
        eot=options.eot,
        errors=options.errors,
        max_documents=options.max_documents,
        max_tokens=options.max_tokens,
    )
    if recipe.takes_parts and any(
        ingredient.split.rule == "characters" for ingredient in ingredients
    ):
        raise UsageError(
            "limits and mixes take whole documents, but this is one text cut in two; --split-by "
            "documents"
        )
    return recipe


def parse_mix(mix: str) -> dict[str, float]:
    """`a=0.7,b=0.3` as {"a": 0.7, "b": 0.3}, in that order. Raises UsageError unless they add up to
    1.
    """
    weights: dict[str, float] = {}
    for part in mix.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (name and equals and 0 < weight < 1) or name in weights:
            raise UsageError(
                f"--mix {mix[:60]}: {part[:40]!r} is not NAME=PART; type for example --mix "
                "a=0.7,b=0.3"
            )
        weights[name] = weight
    if len(weights) < 2 or not math.isclose(sum(weights.values()), 1, abs_tol=1e-6):
        raise UsageError(
            f"--mix {mix[:60]} has to name two corpora or more, and its parts have to add up to 1"
        )
    return weights
