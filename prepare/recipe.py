"""All that decides the bytes of a data folder, before the first document is read."""

from dataclasses import dataclass

from nanogpt_dist.errors import UsageError
from nanogpt_dist.shards.manifest import Manifest, SourceRecord, SplitRule, SplitRuleRecord
from nanogpt_dist.tokenizer import Tokenizer, bpe_size, open_tokenizer
from prepare.corpora import Corpus
from prepare.sources import FIELDED, Sources, records

SEED = 2357  # nanoGPT's for splitting OpenWebText


@dataclass(frozen=True)
class Recipe:
    """spec: gpt2, byte, char, bpe:N or file; known: the tokenizer, unless the text is to make it; column: if any."""

    corpus: Corpus
    files: list[SourceRecord]
    spec: str
    known: Tokenizer | None
    split: SplitRuleRecord
    column: str | None

    def end_of_text(self, tokenizer: Tokenizer) -> bool:
        """Whether each document is followed by end of text: not where one text is cut in two."""
        return self.split.rule == "documents" and tokenizer.eot_id is not None

    def difference(self, made: Manifest) -> str | None:
        """What `made` was made with instead, in a few words; None: this recipe would give the same."""
        if made.name != self.corpus.name:
            return f"corpus {made.name}, not {self.corpus.name}"
        source = made.sources[0]
        if source.files != self.files:
            return f"other source files ({len(source.files)}, now {len(self.files)}, or changed ones)"
        if made.tokenizer.spec != self.spec:
            return f"tokenizer {made.tokenizer.spec}, not {self.spec}"
        if self.known and made.tokenizer.fingerprint != self.known.fingerprint:
            return f"another tokenizer {made.tokenizer.name}"
        for name, value in self.split:
            if (old := getattr(source.split, name)) != value:
                return f"--{'split' if name == 'rule' else name.replace('_', '-')} {old}, not {value}"
        if source.column != self.column:
            return f"--column {source.column}, not {self.column}"
        return None


def make_recipe(
    corpus: Corpus,
    sources: Sources,
    tokenizer: str | None,
    val_fraction: float | None,
    seed: int,
    split: SplitRule | None,
    column: str,
) -> Recipe:
    """The recipe that the options ask for; None: the corpus's own. Reads the sources to hash them.

    Raises UsageError, MissingInputError, BadDataError.
    """
    val_fraction = corpus.val_fraction if val_fraction is None else val_fraction
    if not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g} is not between 0 and 1; type for example 0.05")
    names = [file.name for file in sources.files]
    fields = any(name.lower().endswith(FIELDED) for name in names)
    one_text = len(names) == 1 and not fields
    rule = split or corpus.split or ("characters" if one_text and names[0].lower().endswith(".txt") else "documents")
    if rule == "characters" and not one_text:
        raise UsageError(
            f"a split by characters cuts one text in two; {names[0][-40:]}{' …' if len(names) > 1 else ''} holds "
            "documents: type --split documents"
        )
    spec = corpus.tokenizer if tokenizer is None else tokenizer
    made_of_text = spec == "char" or bpe_size(spec) is not None
    return Recipe(
        corpus=corpus,
        files=records(corpus, sources),
        spec=spec if made_of_text or spec in ("gpt2", "byte") else "file",
        known=None if made_of_text else open_tokenizer(spec),
        split=SplitRuleRecord(rule=rule, val_fraction=val_fraction, seed=seed),
        column=column if fields else None,
    )
