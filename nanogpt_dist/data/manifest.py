"""manifest.json of a data folder: its files with sha256, sources, split and tokenizer.

Without times, paths and host names, so that equal inputs give equal bytes. Its last entry is the
sha256 of the rest; the sha256 of the whole file is the data set id that checkpoints remember.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.storage.durable import open_plain, shown, storage_errors

DATA = Path("data")  # where `nanogpt prepare CORPUS` writes without --out
MANIFEST = "manifest.json"
FORMAT: Literal["nanogpt-data"] = "nanogpt-data"
VERSION: Literal[2] = 2
MAX_BYTES = 256 << 20  # of a manifest: 150 a source file, so 1.7 million of them

MOST = 2**63 - 1  # of what is counted
Count = Annotated[int, Field(ge=0, le=MOST, strict=True)]
CountFromOne = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]
SplitName = Literal["train", "val"]
SplitRule = Literal["documents", "characters", "shuffled"]
Layout = Literal["nanogpt", "llm.c", "raw"]
Eot = Literal["append", "prepend"]
Errors = Literal["strict", "replace", "skip"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(_Record):
    """A file of the folder."""

    name: FileName
    bytes: Count
    sha256: Sha256


class ShardRecord(_Record):
    """A shard and its sidecars. documents: those that end in it.

    layout: nanogpt: format.py's header; of a shard that was imported as it is, llm.c: a header of
    which only the first three words count; raw: nothing but ids, as nanoGPT writes them.
    """

    layout: Layout = "nanogpt"
    tokens: Count
    documents: Count
    largest_id: Count
    file: FileRecord
    checksums: FileRecord
    ends: FileRecord


class SplitRecord(_Record):
    """Totals of a split. bytes: UTF-8 bytes of its text."""

    tokens: Count
    documents: Count
    bytes: Count
    shards: Annotated[list[ShardRecord], Field(min_length=1)]


class TokenizerRecord(_Record):
    """What encoded the text.

    spec: gpt2, byte, char, bpe:N or file; probe: the ids of a fixed text.
    """

    name: str
    spec: str
    n_vocab: CountFromOne
    eot_id: Count | None
    fingerprint: Sha256
    probe: list[Count]
    file: FileRecord


class SourceRecord(_Record):
    """A file that was read; its name is relative to the source that was given."""

    name: str
    bytes: Count
    sha256: Sha256


class SplitRuleRecord(_Record):
    """How text went to train and val.

    documents: whole ones by a seeded hash of their text; characters: one text cut in two; shuffled:
    whole ones, drawn from a seeded permutation as `datasets` does it.
    """

    rule: SplitRule
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: Count


class CorpusRecord(_Record):
    """Where text is from.

    revision: where it is pinned to one; column: the field that was read, if any.

    config, hub_split: which part of a repository on the hub. weight: the part of all tokens that
    was asked for in a mix; tokens, documents: what it gave, in both splits; split None: it came as
    shards.
    """

    corpus: FileName
    description: str
    licence: str
    address: str | None
    config: str | None = None
    hub_split: str | None = None
    revision: str | None
    column: str | None
    weight: Annotated[float, Field(gt=0, le=1)] | None
    split: SplitRuleRecord | None
    tokens: Count
    documents: Count
    files: list[SourceRecord]


class CountsRecord(_Record):
    """Documents that did not go in as they are.

    empty: without a character, left out; replaced: with U+FFFD for what is not UTF-8; skipped: left
    out for that. special: how often the text of end of text, "<|endoftext|>", stands in them, which
    is ordinary text.
    """

    empty: Count = 0
    replaced: Count = 0
    skipped: Count = 0
    special: Count = 0


class Manifest(_Record):
    """The content of manifest.json.

    eot: where end of text stands in a document, None: nowhere; errors: what was done about text
    that is not UTF-8; max_documents, max_tokens: what was asked for, over both splits; sources:
    one, or each part of a mix.
    """

    format: Literal["nanogpt-data"] = FORMAT
    version: Literal[2] = VERSION
    name: FileName
    tokenizer: TokenizerRecord
    eot: Eot | None
    errors: Errors
    max_documents: CountFromOne | None
    max_tokens: CountFromOne | None
    counts: CountsRecord
    splits: dict[SplitName, SplitRecord]
    sources: list[CorpusRecord]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if set(self.splits) != {"train", "val"}:
            raise ValueError("splits are not train and val")
        for name, split in self.splits.items():
            shards = split.shards
            sums = sum(s.tokens for s in shards), sum(s.documents for s in shards)
            if sums != (split.tokens, split.documents):
                raise ValueError(f"the shards of {name} do not add up to its totals")
        for total in ("tokens", "documents"):
            if sum(getattr(c, total) for c in self.sources) != sum(
                getattr(s, total) for s in self.splits.values()
            ):
                raise ValueError(f"the {total} of the sources do not add up to those of the splits")
        names = [file.name for file in self.files()]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        return self

    def files(self) -> list[FileRecord]:
        """Every file of the folder but the manifest."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        return [
            self.tokenizer.file,
            *(file for s in shards for file in (s.file, s.checksums, s.ends)),
        ]

    def to_bytes(self) -> bytes:
        """The file's bytes, a function of the content."""
        body = self.model_dump(mode="json")
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        return json.dumps({**body, "sha256": digest}, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> tuple[Self, str]:
        """The manifest of a folder and the data set id.

        Raises MissingInputError, BadDataError, StorageError.
        """
        path, name = folder / MANIFEST, shown(folder / MANIFEST)
        if not folder.is_dir():
            raise MissingInputError(
                f"{shown(folder)} does not exist or is no folder; {_instead(folder)}"
            )
        ours = any((folder / name).exists() for name in (".prepare", "tokenizer.json"))
        if not path.exists() and any(folder.glob("*.bin")) and not ours:
            line = f"nanogpt import-shards {shown(folder)} --tokenizer {_likely_tokenizer(folder)}"
            raise BadDataError(
                f"{shown(folder)} holds files of ids without a manifest: type {line}"
            )
        if not path.exists() and any(folder.glob("*")) and not ours:
            raise BadDataError(f"{shown(folder)} is no data folder; {_prepare_text(folder)}")
        if not path.exists():
            raise BadDataError(
                f"{name} is missing: no nanogpt prepare has finished there; run the same nanogpt "
                "prepare again"
            )
        with storage_errors(path), open_plain(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadDataError(
                f"{name} is longer than the {MAX_BYTES:,} bytes of any manifest; prepare the data "
                "again"
            )
        manifest = cls._parse(data, name)
        if manifest.to_bytes() != data:
            raise BadDataError(
                f"{name} was edited or damaged: its own sha256 does not match; prepare the data "
                "again"
            )
        return manifest, hashlib.sha256(data).hexdigest()

    @classmethod
    def _parse(cls, data: bytes, name: str) -> Self:
        try:
            content: Any = json.loads(data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BadDataError(
                f"{name} is not the manifest of a data folder, or cut off; prepare the data again"
            )
        if content.get("version") != VERSION:
            found = str(content.get("version"))[:20]
            raise BadDataError(
                f"{name} has version {found}, this nanogpt reads {VERSION}; prepare again, or "
                "update nanogpt"
            )
        content.pop("sha256", None)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadDataError(
                f"{name}: {where[:60]} {first['msg'][:60]}; prepare the data again"
            ) from None


def _instead(folder: Path) -> str:
    """What to type where `folder` is not there: its name under data/ may be."""
    if folder.is_file():
        return _prepare_text(folder)
    if (DATA / folder.name / MANIFEST).is_file():
        return f"{DATA / folder.name} is there: give that"
    there = [path.parent.name for path in DATA.glob(f"*/{MANIFEST}")]
    near = difflib.get_close_matches(folder.name, there, n=1)
    if near and not any(shown(folder) == preset.get("dataset") for preset in PRESETS.values()):
        return f"did you mean {DATA / near[0]}?"
    if folder.parent == DATA:
        own = f"prepare text --source PATH --out {shown(folder)}"
        return f"type: nanogpt prepare {folder.name}, or of your own text: nanogpt {own}"
    return f"type: nanogpt prepare CORPUS --out {shown(folder)}"


def _prepare_text(source: Path) -> str:
    """What to type where text was given instead of the data folder that is made of it."""
    return f"type: nanogpt prepare text --source {shown(source)} --out {DATA / source.stem}"


def _likely_tokenizer(folder: Path) -> str:
    """What made the ids in a folder of nanoGPT's: characters, which meta.pkl names, or GPT-2's."""
    return shown(folder / "meta.pkl") if (folder / "meta.pkl").is_file() else "gpt2"
