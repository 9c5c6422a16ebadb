"""The catalogue: what `nanogpt prepare CORPUS` can prepare. Entries are data; sources.py gets at the text."""

import difflib
from dataclasses import dataclass
from typing import Literal

from nanogpt_dist.errors import UsageError
from nanogpt_dist.shards.manifest import SplitRule


@dataclass(frozen=True)
class Corpus:
    """A corpus and the defaults that go with it.

    origin: the running Python's own library, one file at an address, or files that the user names.
    split None: `characters` for a single .txt file, else `documents`. preset: what trains well on it as it is.
    """

    name: str
    description: str
    licence: str
    origin: Literal["stdlib", "download", "files"]
    tokenizer: str
    val_fraction: float
    split: SplitRule | None
    preset: str | None = None
    address: str | None = None
    bytes: int = 0  # of the file at the address
    sha256: str = ""


SHAKESPEARE = {
    "licence": "public domain",
    "origin": "download",
    "val_fraction": 0.1,
    "split": "characters",
    "address": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "bytes": 1_115_394,
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="python-stdlib",
            description="The standard library of the Python that runs this, 12 MB of source code; no network",
            licence="PSF-2.0",
            origin="stdlib",
            tokenizer="bpe:4096",
            val_fraction=0.03,
            split="documents",
            preset="quickstart",
        ),
        # With gpt2's ids 301,966 tokens to train on and 36,059 to validate, as nanoGPT has them.
        Corpus(name="shakespeare", description="Tiny Shakespeare, 1.1 MB of plays", tokenizer="gpt2", **SHAKESPEARE),  # type: ignore[arg-type]
        # 65 characters; 1,003,854 and 111,540 tokens.
        Corpus(
            name="shakespeare_char",
            description="Tiny Shakespeare, character by character",
            tokenizer="char",
            preset="shakespeare-char",
            **SHAKESPEARE,  # type: ignore[arg-type]
        ),
        Corpus(
            name="text",
            description="Files of yours: .txt .md .jsonl[.gz|.zst] .parquet, or folders of them (--source)",
            licence="yours to know",
            origin="files",
            tokenizer="gpt2",
            val_fraction=0.1,
            split=None,
        ),
    )
}


def find(name: str) -> Corpus:
    """The corpus of that name. Raises UsageError with the nearest name."""
    if name in CORPORA:
        return CORPORA[name]
    if name == "openwebtext":
        raise UsageError(
            "openwebtext cannot be fetched yet; with its text at hand type: nanogpt prepare text --source DIR "
            "--tokenizer gpt2 --out data/openwebtext"
        )
    near = difflib.get_close_matches(name, CORPORA, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CORPORA)}."
    raise UsageError(f"no corpus {name[:40]}; {hint} For files of yours type: nanogpt prepare text --source PATH")
