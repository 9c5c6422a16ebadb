"""The pages of the corpora, the tokenizers and the exit codes."""

from docs.generate.text import code, escape, table
from nanogpt_dist.errors import INTERRUPTED, WARNINGS, Exit, NanogptError
from nanogpt_dist.tokenizer.loading import TIKTOKEN
from prepare.corpora import CORPORA, Corpus

CORPORA_PAGE = """\
# Corpora

What `nanogpt prepare NAME` knows; `nanogpt prepare --list` prints the same. Any other repository of
text on the Hugging Face hub is `nanogpt prepare hf OWNER/NAME`, your own files are
`nanogpt prepare text --source PATH`.

{corpora}
"""

SPLITS = {
    "documents": "whole documents by their hash",
    "characters": "the end of the text",
    "shuffled": "rows drawn as nanoGPT does",
    None: "whole documents by their hash; of one .txt file its end",
}

TOKENIZERS_PAGE = """\
# Tokenizers

What `--tokenizer` takes.

{table}
A byte-level BPE of Hugging Face's keeps its ids, or is refused. What tiktoken cannot encode, as
Qwen's NFC or added words, the tokenizers library does, more slowly. Above 65,536 ids the shards are
uint32. The tokenizer travels inside the data folder and inside every checkpoint.
"""

EXIT_CODES_PAGE = """\
# Exit codes

The same for every command.

{table}
torchrun itself returns 1 whatever its ranks return. `nanogpt launch` returns the run's own code,
and the run folder's `status.json` has it, too.

An error is one line on standard error, of at most 200 characters: what is wrong, where, and what to
type next. `--debug` shows the traceback.
"""


def corpora_page() -> str:
    """The catalogue of `nanogpt prepare`."""
    return CORPORA_PAGE.format(corpora="\n".join(map(corpus_section, CORPORA.values())))


def corpus_section(corpus: Corpus) -> str:
    facts = {
        "from": corpus.address and code(corpus.address),
        "configuration": corpus.config and code(corpus.config),
        "to fetch": corpus.bytes and f"{corpus.bytes / 1e6:,.1f} MB",
        "documents": corpus.documents and f"{corpus.documents:,}",
        "tokens": corpus.tokens
        and f"{corpus.tokens[0]:,} to train, {corpus.tokens[1]:,} to validate",
        "tokenizer": code(corpus.tokenizer),
        "validation": f"a fraction of {corpus.val_fraction:g}, {SPLITS[corpus.split]}",
        "trains well with": corpus.preset and f"[`{corpus.preset}`](#preset-{corpus.preset})",
        "licence": escape(corpus.licence),
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    return f"## {corpus.name}\n\n{escape(corpus.description)}.\n\n{lines}\n"


def tokenizers_page() -> str:
    """What --tokenizer takes."""
    rows = [
        ("`gpt2`", "GPT-2's 50,257 ids; shipped with the toolkit, no network"),
        ("`byte`", "256 bytes and an end of text"),
        ("`char`", "the characters of the text, as nanoGPT's `shakespeare_char` has them"),
        ("`bpe:N`", "a byte-pair encoding of N ids, learnt from the text"),
        (", ".join(map(code, TIKTOKEN)), "tiktoken's encodings, fetched once"),
        ("`FILE.tiktoken`", "a file of ranks, as tiktoken reads them"),
        ("`tokenizer.json`", "ours, or one of Hugging Face's; or the folder in which it lies"),
    ]
    return TOKENIZERS_PAGE.format(table=table(("name", "what it is"), rows))


def exit_codes_page() -> str:
    """Each exit code with its meaning and the exceptions that have it."""
    errors: dict[int, list[str]] = {}
    for error in NanogptError.__subclasses__():
        errors.setdefault(int(error.code), []).append(code(error.__name__))
    rows = [
        (code(int(exit)), escape(exit.meaning), ", ".join(errors.get(int(exit), [])))
        for exit in Exit
    ]
    rows.insert(1, (code(WARNINGS), "`nanogpt doctor` has warnings, and no error", ""))
    rows.append((code(INTERRUPTED), "Ctrl-C in a command that has nothing to save", ""))
    return EXIT_CODES_PAGE.format(table=table(("code", "meaning", "exception"), rows))
