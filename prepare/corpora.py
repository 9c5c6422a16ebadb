"""The catalogue of `nanogpt prepare CORPUS`. Entries are data; sources/ reads them."""

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal

from nanogpt_dist.data.manifest import SplitRule
from nanogpt_dist.errors import UsageError


@dataclass(frozen=True)
class Corpus:
    """A corpus and the defaults that go with it.

    origin: the running Python's own library, one file at an address, a repository of data sets on
    the Hugging Face hub, or files that the user names. split None: `characters` for a single .txt
    file, else `documents`. documents, tokens (train and val, under `tokenizer`): what is known to
    come out. preset: what trains well on it.
    """

    name: str
    description: str
    licence: str
    origin: Literal["stdlib", "download", "hub", "files"]
    tokenizer: str
    val_fraction: float
    split: SplitRule | None
    preset: str | None = None
    address: str | None = None
    # of the file at the address; of what a corpus of the hub fetches, about; 0: not known
    bytes: int = 0
    sha256: str = ""
    column: str = "text"
    config: str | None = None  # of the repository at the address
    hub_split: str = "train"
    revision: str | None = None  # None: the newest, which the manifest then pins
    documents: int | None = None
    tokens: tuple[int, int] | None = None


SHAKESPEARE = {
    "licence": "public domain",
    "origin": "download",
    "val_fraction": 0.1,
    "split": "characters",
    "address": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "bytes": 1_115_394,
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}

HUB = {"origin": "hub", "tokenizer": "gpt2"}
BY_HASH = {**HUB, "split": "documents", "val_fraction": 0.001}

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="python-stdlib",
            description="The standard library of the Python that runs this, 12 MB of source code; "
            "no network",
            licence="PSF-2.0",
            origin="stdlib",
            tokenizer="bpe:4096",
            val_fraction=0.03,
            split="documents",
            preset="quickstart",
        ),
        # With gpt2's ids 301,966 tokens to train on and 36,059 to validate, as nanoGPT has them.
        Corpus(
            name="shakespeare",
            description="Tiny Shakespeare, plays",
            tokenizer="gpt2",
            **SHAKESPEARE,  # type: ignore[arg-type]
        ),
        # 65 characters; 1,003,854 and 111,540 tokens.
        Corpus(
            name="shakespeare_char",
            description="Tiny Shakespeare, character by character",
            tokenizer="char",
            preset="shakespeare-char",
            **SHAKESPEARE,  # type: ignore[arg-type]
        ),
        Corpus(
            name="openwebtext",
            description="OpenWebText, 40 GB of text, the open twin of GPT-2's training data, split "
            "as nanoGPT does",
            address="Skylion007/openwebtext",
            licence="CC0-1.0",
            val_fraction=0.0005,
            split="shuffled",
            preset="gpt2-124m",
            documents=8_013_769,
            tokens=(9_035_582_198, 4_434_897),
            **HUB,  # type: ignore[arg-type]
        ),
        Corpus(
            name="fineweb-10bt",
            description="FineWeb, a sample of 10 billion tokens of filtered web text",
            bytes=27_600_000_000,
            address="HuggingFaceFW/fineweb",
            config="sample-10BT",
            licence="ODC-By",
            documents=14_868_862,
            **BY_HASH,  # type: ignore[arg-type]
        ),
        Corpus(
            name="fineweb-edu-10bt",
            description="FineWeb-Edu, a sample of 10 billion tokens of web text that teaches",
            address="HuggingFaceFW/fineweb-edu",
            config="sample-10BT",
            licence="ODC-By",
            documents=9_672_101,
            **BY_HASH,  # type: ignore[arg-type]
        ),
        Corpus(
            name="tinystories",
            description="TinyStories, short stories in small words",
            bytes=1_000_775_442,
            address="roneneldan/TinyStories",
            licence="CDLA-Sharing-1.0",
            documents=2_119_719,
            **{**BY_HASH, "val_fraction": 0.01},  # type: ignore[arg-type]
        ),
        # Its rows are lines; the articles are not marked.
        Corpus(
            name="wikitext-103",
            description="WikiText-103, verified articles of Wikipedia, line by line",
            bytes=315_466_397,
            address="Salesforce/wikitext",
            config="wikitext-103-raw-v1",
            licence="CC-BY-SA-3.0, GFDL",
            documents=1_801_350,
            **{**BY_HASH, "val_fraction": 0.01},  # type: ignore[arg-type]
        ),
        Corpus(
            name="c4-en",
            description="C4, the English part, cleaned web text",
            bytes=326_778_635_540,
            address="allenai/c4",
            config="en",
            licence="ODC-By",
            documents=364_868_892,
            **{**BY_HASH, "val_fraction": 0.0001},  # type: ignore[arg-type]
        ),
        Corpus(
            name="text",
            description="Files of yours: .txt .md .jsonl .parquet .arrow, .gz, .zst, folders, or - "
            "(--source)",
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
    near = difflib.get_close_matches(name, CORPORA, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CORPORA)}."
    raise UsageError(
        f"no corpus {name[:40]}; {hint} Or type: nanogpt prepare text --source PATH, or prepare hf "
        "REPO"
    )


def repository(repo: str) -> Corpus:
    """Any other repository of the hub, e.g. `roneneldan/TinyStories`.

    Raises UsageError for what is no such name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise UsageError(
            f"{repo[:60]} is not the name of a repository on the hub; type: nanogpt prepare hf "
            "OWNER/NAME"
        )
    return Corpus(
        name=plain_name(repo.split("/")[1]) or "hf",
        description=f"{repo} on the Hugging Face hub",
        licence="see its page on the hub",
        origin="hub",
        address=repo,
        tokenizer="gpt2",
        val_fraction=0.01,
        split="documents",
    )


def plain_name(name: str) -> str:
    """`name` as a data set may be called."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]


def from_hub(corpus: Corpus, config: str | None, split: str | None, revision: str | None) -> Corpus:
    """A corpus of the hub with another configuration, split or revision.

    Raises UsageError for one from elsewhere.
    """
    given = {"config": config, "hub_split": split, "revision": revision}
    changed = {name: value for name, value in given.items() if value is not None}
    if changed and corpus.origin != "hub":
        flag = "--" + next(iter(changed)).replace("hub_", "")
        raise UsageError(
            f"{flag} is for corpora of the hub, which {corpus.name} is not; leave it out"
        )
    if corpus.name not in CORPORA:  # of two parts of a repository, each has its own name
        parts = [
            corpus.name,
            *(plain_name(part) for part in (config, split) if part and part != "train"),
        ]
        changed["name"] = "-".join(part for part in parts if part)
    return replace(corpus, **changed)  # type: ignore[arg-type]
