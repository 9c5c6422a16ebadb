"""nanoGPT's and llm.c's files of ids become a data folder where they lie.

Sidecars and a manifest come beside them.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from nanogpt_dist.data.foreign import (
    Content,
    ForeignShard,
    document_ends,
    look_at,
    numpy_advice,
    read_through,
)
from nanogpt_dist.data.links import link_or_copy
from nanogpt_dist.data.manifest import (
    MANIFEST,
    CorpusRecord,
    CountsRecord,
    Eot,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    SplitName,
    SplitRecord,
    TokenizerRecord,
)
from nanogpt_dist.data.scan import Progress, ReadProgress, in_threads
from nanogpt_dist.errors import BadDataError, CannotCreateError, MissingInputError, UsageError
from nanogpt_dist.storage.durable import shown, storage_errors, write_atomic
from nanogpt_dist.storage.user_file import probe_writable
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.tokenizer.loading import open_tokenizer

TOKENIZER = "tokenizer.json"
SPLITS: tuple[SplitName, SplitName] = ("train", "val")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,190}\.bin")
ORIGIN = {"raw": "imported from nanoGPT's raw .bin", "llm.c": "imported from llm.c's shards"}

Paths = dict[SplitName, list[Path]]
Files = dict[SplitName, list[ForeignShard]]


def import_shards(
    sources: Sequence[Path],
    tokenizer: str,
    val: Sequence[Path] = (),
    out: Path | None = None,
    eot: Eot | None = None,
    uint32: bool | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Path, Manifest]:
    """Make a data folder of files of ids, and return it with its manifest.

    None is copied that can be linked.

    sources: files, or folders of .bin files; by their names train or val, unless `val` tells which
    are val. tokenizer: gpt2 | byte | FILE, what made the ids. out: a folder for hard links to the
    files, or copies where there can be none; None: the folder in which they all lie. eot: where end
    of text stands in a document; None: append in raw files, prepend in llm.c's. uint32: whether
    files without a header hold 32-bit ids; None: no, and refuse those that look so. note: told of
    what looks odd. Raises UsageError, MissingInputError, BadDataError, CannotCreateError,
    StorageError.
    """
    made_by = open_tokenizer(tokenizer)
    paths = choose(sources, val)
    folder = _folder_of(paths, out)
    files = {
        split: [
            look_at(path if out is None else path.resolve(), uint32, made_by.n_vocab)
            for path in paths[split]
        ]
        for split in SPLITS
    }
    eot = _end_of_text(files, made_by, eot)
    _probe(folder, out)
    everything = files["train"] + files["val"]
    _sweep(folder, everything)
    if out is not None:
        for split in SPLITS:
            files[split] = [
                link_or_copy(file, out / path.name, note)
                for file, path in zip(files[split], paths[split], strict=True)
            ]
        everything = files["train"] + files["val"]
    _refuse_another_tokenizer(folder / TOKENIZER, made_by)
    meter, lengths = (
        ReadProgress(sum(file.bytes for file in everything), progress),
        made_by.byte_lengths(),
    )
    read = in_threads(
        lambda file: read_through(file, made_by, lengths, meter), everything, meter, None
    )
    record = _tokenizer_record(made_by, tokenizer, _save(folder / TOKENIZER, made_by.to_json()))
    if not any(len(content.eots) for content in read):
        eot = None
    contents = {"train": read[: len(files["train"])], "val": read[len(files["train"]) :]}
    splits = {split: _split_record(files[split], contents[split], eot) for split in SPLITS}
    if eot and (odd := _odd(files["train"], contents["train"], eot)):
        note(odd)
    manifest = _manifest(folder, record, eot, splits)
    write_atomic(folder / MANIFEST, manifest.to_bytes())
    return folder, manifest


def choose(sources: Sequence[Path], val: Sequence[Path]) -> Paths:
    """Which files are train and which are val, each in the order of the numbers in their names.

    Raises UsageError, MissingInputError, BadDataError.
    """
    for folder in sources:
        if (
            folder.is_dir()
            and not any(folder.glob("*.bin"))
            and (arrays := sorted(folder.glob("*.npy")))
        ):
            raise BadDataError(numpy_advice(arrays[0]))
    kept = {path.absolute() for path in val}
    named: Paths = {"train": [], "val": list(val)}
    for path in chain.from_iterable(
        sorted(p.glob("*.bin")) if p.is_dir() else [p] for p in sources
    ):
        if path.absolute() in kept:
            continue
        splits = ["train"] if val else [split for split in SPLITS if split in path.name]
        if len(splits) != 1:
            raise UsageError(
                f"is {path.name[-80:]} for train or val? its name does not tell; give files, --val "
                "FILE"
            )
        named["train" if splits == ["train"] else "val"].append(path)
    for split in SPLITS:
        if not named[split]:
            raise UsageError(f"no file is for {split}; name the files, those for val as --val FILE")
        named[split].sort(key=_number_order)
    every = named["train"] + named["val"]
    for path in every:
        if not path.exists():
            raise MissingInputError(f"{shown(path)} does not exist; check the path")
        if not path.is_file():
            raise BadDataError(f"{shown(path)} is no file; give files of ids, or a folder of them")
        if path.suffix == ".npy":
            raise BadDataError(numpy_advice(path))
        if not NAME.fullmatch(path.name):
            raise UsageError(
                f"{path.name[-80:]!r}: name it with letters, digits, . _ - and .bin at the end"
            )
    if len({path.name for path in every}) < len(every):
        raise UsageError("two of the files have the same name; rename one, or give each once")
    return named


def _number_order(path: Path) -> list[tuple[int, str]]:
    """Sorts x_2.bin before x_10.bin."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"([0-9]+)", path.name)
    ]


def _folder_of(paths: Paths, out: Path | None) -> Path:
    every = paths["train"] + paths["val"]
    if out is None:
        if link := next((path for path in every if path.is_symlink()), None):
            raise BadDataError(
                f"{shown(link)} is a symbolic link, which is not followed; put the file there, or "
                "give --out DIR, for hard links"
            )
        if len({path.parent.resolve() for path in every}) > 1:
            raise UsageError(
                "the files lie in several folders; give --out DIR, which gets hard links to them"
            )
    folder = every[0].parent if out is None else out
    if (folder / MANIFEST).exists():
        raise CannotCreateError(
            f"{shown(folder)} is a data folder already; type: nanogpt verify {shown(folder)}"
        )
    return folder


def _end_of_text(files: Files, tokenizer: Tokenizer, eot: Eot | None) -> Eot | None:
    if tokenizer.eot_id is None:
        if eot:
            raise UsageError(
                f"tokenizer {tokenizer.name} has no end of text; leave --eot {eot} out"
            )
        return None
    usual = {file.eot for split in SPLITS for file in files[split]}
    if eot is None and len(usual) > 1:
        raise UsageError(
            "files of several programs; say where end of text stands: --eot append or --eot prepend"
        )
    return eot or usual.pop()


def _probe(folder: Path, out: Path | None) -> None:
    try:
        probe_writable(folder)
    except CannotCreateError as error:
        if out is not None:
            raise
        why = str(error).partition(";")[0]
        raise CannotCreateError(
            f"{why}; add --out DIR, a folder of yours for links to the files, or copies"
        ) from None


def _sidecars(file: ForeignShard) -> tuple[Path, Path]:
    return file.path.with_suffix(".crc32"), file.path.with_suffix(".ends")


def _sweep(folder: Path, files: list[ForeignShard]) -> None:
    """Remove what a killed import left unfinished."""
    ours = {
        MANIFEST,
        TOKENIZER,
        *(path.name for file in files for path in (file.path, *_sidecars(file))),
    }
    with storage_errors(folder):
        for path in folder.glob(".tmp-*"):
            if (match := re.fullmatch(r"\.tmp-(.+)-[0-9a-f]{8}", path.name)) and match[1] in ours:
                path.unlink(missing_ok=True)


def _refuse_another_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    with storage_errors(path):
        if path.is_symlink() or (path.exists() and path.read_bytes() != tokenizer.to_json()):
            raise CannotCreateError(
                f"{shown(path)} is there already, and another one; move it away, or give --out DIR"
            )


def _save(path: Path, data: bytes) -> FileRecord:
    write_atomic(path, data)
    return FileRecord(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _tokenizer_record(tokenizer: Tokenizer, spec: str, file: FileRecord) -> TokenizerRecord:
    return TokenizerRecord(
        name=tokenizer.name,
        spec=spec if spec == tokenizer.name else "file",
        n_vocab=tokenizer.n_vocab,
        eot_id=tokenizer.eot_id,
        fingerprint=tokenizer.fingerprint,
        probe=tokenizer.probe(),
        file=file,
    )


def _split_record(
    files: list[ForeignShard], contents: list[Content], eot: Eot | None
) -> SplitRecord:
    """Write the sidecars of a split; what its shards are."""
    shards = []
    ends_of = document_ends(
        [file.tokens for file in files], [content.eots for content in contents], eot
    )
    for file, content, ends in zip(files, contents, ends_of, strict=True):
        checksums, borders = _sidecars(file)
        shards.append(
            ShardRecord(
                layout=file.layout,
                tokens=file.tokens,
                documents=len(ends),
                largest_id=content.largest_id,
                file=FileRecord(name=file.path.name, bytes=file.bytes, sha256=content.sha256),
                checksums=_save(checksums, content.crcs.tobytes()),
                ends=_save(borders, ends.astype("<u8").tobytes()),
            )
        )
    return SplitRecord(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=sum(content.text_bytes for content in contents),
        shards=shards,
    )


def _odd(files: list[ForeignShard], contents: list[Content], eot: Eot) -> str | None:
    """A line where end of text seems to stand at the other end of documents."""
    first, last = contents[0].eots, contents[-1].eots
    begins = len(first) > 0 and first[0] == 0
    ends = len(last) > 0 and last[-1] == files[-1].tokens - 1
    if (eot == "append" and begins and not ends) or (eot == "prepend" and ends and not begins):
        other = "prepend" if eot == "append" else "append"
        return f"end of text was taken to {eot}, the train split looks like --eot {other}; only document borders differ"  # noqa: E501
    return None


def _manifest(
    folder: Path,
    tokenizer: TokenizerRecord,
    eot: Eot | None,
    splits: dict[SplitName, SplitRecord],
) -> Manifest:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip(".")[:80] or "data"
    shards = [shard for split in SPLITS for shard in splits[split].shards]
    return Manifest(
        name=name,
        tokenizer=tokenizer,
        eot=eot,
        errors="strict",
        max_documents=None,
        max_tokens=None,
        counts=CountsRecord(),
        splits=splits,
        sources=[
            CorpusRecord(
                corpus=name,
                description=", ".join(
                    text for layout, text in ORIGIN.items() if layout in {s.layout for s in shards}
                ),
                licence="not stated",
                address=None,
                revision=None,
                column=None,
                weight=None,
                split=None,
                tokens=sum(split.tokens for split in splits.values()),
                documents=sum(split.documents for split in splits.values()),
                files=[
                    SourceRecord(name=s.file.name, bytes=s.file.bytes, sha256=s.file.sha256)
                    for s in shards
                ],
            )
        ],
    )
