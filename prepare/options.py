"""Every option of `nanogpt prepare`, declared once: name, type, default, bounds and help."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nanogpt_dist.config import setting

ARGUMENTS, FILES, HUB, TOKENS, MACHINE = "Arguments", "Files", "Hub", "Tokens", "Machine"
FLAGS = (FILES, HUB, TOKENS, MACHINE)  # the groups that are flags, in the order of --help


class PrepareConfig(BaseModel):
    """What to prepare, from which files, into which tokens. None: what the corpus says.

    Choices are those of nanogpt_dist.data.manifest, which takes numpy, as --help does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str | None = setting(
        None, ARGUMENTS, "What to prepare; --list shows all. text: files of yours; hf: any REPO."
    )
    repo: str | None = setting(
        None, ARGUMENTS, "With hf: a repository of the Hugging Face hub, OWNER/NAME."
    )

    out: Path | None = setting(None, FILES, "Folder to write. Default: data/CORPUS.", metavar="DIR")
    source: list[Path] | None = setting(
        None,
        FILES,
        "File, folder or 'pattern' to read: .txt .md .jsonl .ndjson .json .parquet .arrow, also "
        ".gz .zst; - for text on standard input, -.jsonl for lines. May be given several times.",
        metavar="PATH",
    )
    column: str | None = setting(
        None, FILES, "Field or column that holds the text. Default: text.", metavar="NAME"
    )
    mix: str | None = setting(
        None,
        FILES,
        "Instead of CORPUS: several, by name or path, with their parts of the tokens.",
        metavar="A=0.7,B=0.3",
    )

    config: str | None = setting(None, HUB, "Configuration of the repository.", metavar="NAME")
    split: str | None = setting(
        None, HUB, "Split of the repository. Default: train.", metavar="NAME"
    )
    revision: str | None = setting(
        None,
        HUB,
        "Branch, tag or commit. Default: the newest, which is then pinned.",
        metavar="NAME",
    )
    streaming: bool = setting(
        False,
        HUB,
        "Fetch files when they are needed, and keep none; else they stay in the hub's cache.",
    )

    tokenizer: str | None = setting(
        None,
        TOKENS,
        "gpt2 | byte | char | bpe:N (N ids, learnt from the text) | cl100k_base … | FILE. "
        "Default: the corpus's.",
        metavar="NAME",
    )
    eot: Literal["append", "prepend"] = setting(
        "append", TOKENS, "Where each document gets its end of text."
    )
    val_fraction: float | None = setting(
        None,
        TOKENS,
        "Part kept for validation, between 0 and 1. Default: the corpus's own.",
    )
    split_by: Literal["documents", "characters", "shuffled"] | None = setting(
        None,
        TOKENS,
        "Train and val get: whole documents by their hash, two parts of one text, or rows drawn "
        "as nanoGPT does. Default: characters for a single .txt file, else documents.",
    )
    seed: int = setting(
        2357,  # nanoGPT's for splitting OpenWebText
        TOKENS,
        "Decides which documents are validated with.",
        ge=0,
        le=2**63 - 1,
    )
    max_documents: int | None = setting(
        None, TOKENS, "Stop after that many documents.", metavar="N", ge=1
    )
    max_tokens: int | None = setting(
        None,
        TOKENS,
        "Stop before a document that would pass that many tokens.",
        metavar="N",
        ge=1,
    )
    errors: Literal["strict", "replace", "skip"] = setting(
        "strict",
        TOKENS,
        "What is not UTF-8: an error, U+FFFD for each bad byte, or left out, as what is no text "
        "is; counted.",
    )

    workers: int | None = setting(
        None,
        MACHINE,
        "Processes that encode; the result is the same. Default: one per core, at most 8.",
        metavar="N",
        ge=1,
        le=1024,
    )
    fresh: bool = setting(
        False, MACHINE, "Start over where an unfinished run would be gone on with."
    )
