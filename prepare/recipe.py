"""All that decides the bytes of a data folder, before the first document is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist.data.manifest import CorpusRecord, Eot, Errors, SourceRecord, SplitRuleRecord
from nanogpt_dist.errors import UsageError
from nanogpt_dist.tokenizer import Tokenizer, bpe_size
from nanogpt_dist.tokenizer.loading import open_tokenizer
from prepare.corpora import Corpus
from prepare.options import PrepareConfig
from prepare.readers.formats import Format, format_of
from prepare.request import MIX


@dataclass(frozen=True)
class Ingredient:
    """One corpus of a recipe. column: the field to read, if files have any; weight: in a mix."""

    corpus: Corpus
    files: list[SourceRecord]
    revision: str | None
    split: SplitRuleRecord
    column: str | None
    weight: float | None

    def format(self, file: int) -> Format:
        """How file number `file` is read; what has no known ending is text."""
        return format_of(self.files[file].name) or Format("text")

    def record(self, tokens: int = 0, documents: int = 0) -> CorpusRecord:
        """Its place in the manifest. tokens, documents: what it gave, in both splits."""
        return CorpusRecord(
            corpus=self.corpus.name,
            description=self.corpus.description,
            licence=self.corpus.licence,
            address=self.corpus.address,
            config=self.corpus.config,
            hub_split=self.corpus.hub_split if self.corpus.origin == "hub" else None,
            revision=self.revision,
            column=self.column,
            weight=self.weight,
            split=self.split,
            tokens=tokens,
            documents=documents,
            files=self.files,
        )


@dataclass(frozen=True)
class Recipe:
    """All that is decided before the first document is read.

    spec: gpt2, byte, char, bpe:N, tiktoken's name, or file. known: the tokenizer; None: the text
    makes it.
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
            "sources": [source_key(ingredient.record()) for ingredient in self.ingredients],
        }


def source_key(source: CorpusRecord) -> dict[str, Any]:
    """What of a source decides the bytes, as JSON has it; the names are those of the options."""
    rule = source.split
    return {
        "corpus": source.corpus,
        "address": source.address,
        "config": source.config,
        "split": source.hub_split,
        "revision": source.revision,
        "column": source.column,
        "weight": source.weight,
        **(
            {"split-by": rule.rule, "val-fraction": rule.val_fraction, "seed": rule.seed}
            if rule
            else {}
        ),
        "files": [file.model_dump() for file in source.files],
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first difference of two keys in a few words, the old one first; None: they are equal."""
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
    config: PrepareConfig,
    weight: float | None = None,
) -> Ingredient:
    """A corpus with the options on top. Raises UsageError where they do not go together."""
    val_fraction = corpus.val_fraction if config.val_fraction is None else config.val_fraction
    if not 0 < val_fraction < 1:
        raise UsageError(
            f"--val-fraction {val_fraction:g} is not between 0 and 1; type for example 0.05"
        )
    formats = [format_of(file.name) or Format("text") for file in files]
    one_text = len(files) == 1 and not formats[0].has_fields
    plain = one_text and files[0].name.lower().endswith(".txt")
    rule = (
        config.split_by
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
        split=SplitRuleRecord(rule=rule, val_fraction=val_fraction, seed=config.seed),
        column=(config.column or corpus.column) if has_fields else None,
        weight=weight,
    )


def make_recipe(ingredients: list[Ingredient], config: PrepareConfig) -> Recipe:
    """The recipe for one ingredient, or a mix of several.

    Raises UsageError, MissingInputError, BadDataError.
    """
    mixed = ingredients[0].weight is not None
    if mixed and config.max_documents:
        raise UsageError(
            "--max-documents says nothing about the parts of a --mix; give --max-tokens"
        )
    spec = config.tokenizer or ("gpt2" if mixed else ingredients[0].corpus.tokenizer)
    made_of_text = spec == "char" or bpe_size(spec) is not None
    recipe = Recipe(
        name=MIX if mixed else ingredients[0].corpus.name,
        ingredients=tuple(ingredients),
        spec="file" if not made_of_text and Path(spec).suffix in (".json", ".tiktoken") else spec,
        known=None if made_of_text else open_tokenizer(spec),
        eot=config.eot,
        errors=config.errors,
        max_documents=config.max_documents,
        max_tokens=config.max_tokens,
    )
    if recipe.takes_parts and any(
        ingredient.split.rule == "characters" for ingredient in ingredients
    ):
        if not mixed:
            raise UsageError(
                "a limit takes whole documents, but this is one text cut in two: leave "
                "--max-documents and --max-tokens out, or give several files"
            )
        raise UsageError(
            "a mix takes whole documents, but a part of it is one text cut in two; type --split-by "
            "documents"
        )
    return recipe
