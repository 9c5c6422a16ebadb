"""From a corpus to a data folder, whose bytes depend on text, tokenizer and options only: `build(...)`."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from nanogpt_dist.errors import BadDataError, CannotCreateError, one_line
from nanogpt_dist.shards import ShardWriter, verify_folder
from nanogpt_dist.shards.manifest import (
    MANIFEST,
    CorpusRecord,
    CountsRecord,
    FileRecord,
    Manifest,
    ShardRecord,
    SplitName,
    SplitRecord,
    SplitRule,
    TokenizerRecord,
)
from nanogpt_dist.storage.durable import sha256_file, shown, write_atomic
from nanogpt_dist.tokenizer import Tokenizer
from prepare.corpora import find
from prepare.encode import Part, batches, encode_batches
from prepare.folder import TOKENIZER, claimed
from prepare.recipe import SEED, Recipe, make_recipe
from prepare.sources import Sources, find_sources, on_disk, refuse_changed
from prepare.split import SPLITS, Tally, split_texts
from prepare.vocabulary import make_tokenizer

SMALL_BYTES = 4 << 20  # below this, starting workers takes longer than they save

Progress = Callable[[str, int, int], None]  # what is being done, bytes of the sources read, bytes in all
Note = Callable[[str], None]  # a line for the user


def build(
    corpus: str,
    out: Path,
    sources: Sequence[Path] = (),
    tokenizer: str | None = None,
    val_fraction: float | None = None,
    workers: int | None = None,
    seed: int = SEED,
    split: SplitRule | None = None,
    column: str = "text",
    progress: Progress | None = None,
    note: Note | None = None,
) -> Manifest:
    """Prepare `corpus` into the folder `out` and return its manifest; what is None comes from the catalogue.

    sources: files or folders to read. tokenizer: gpt2 | byte | char | bpe:N | FILE. val_fraction: of the documents or
    characters. workers: processes that encode, by default one per core, at most 8. note: told of what is left out.
    A folder that was finished with the same inputs and options is verified and left as it is.
    Raises UsageError, MissingInputError, BadDataError, HubUnavailableError, CannotCreateError, StorageError.
    """
    entry = find(corpus)
    found = find_sources(entry, sources)
    if found.ignored and note:
        names = one_line(", ".join(found.ignored), 80)
        note(f"not read, for an unknown ending or as a link to a folder ({len(found.ignored)}): {names}")
    recipe = make_recipe(entry, found, tokenizer, val_fraction, seed, split, column)
    if (out / MANIFEST).exists():
        return _finished(out, recipe)
    with ExitStack() as stack:
        found = stack.enter_context(on_disk(entry, found))
        stack.enter_context(claimed(out))
        if (out / MANIFEST).exists():  # another run has finished it just now
            return _finished(out, recipe)
        return _fill(out, recipe, found, workers or default_workers(), progress or _no_progress)


def default_workers() -> int:
    """One process for each core that we may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _finished(out: Path, recipe: Recipe) -> Manifest:
    """The manifest of a finished folder, if it is what the recipe would make, and every byte of it is good."""
    try:
        manifest, _ = Manifest.read(out)
    except BadDataError as error:
        raise CannotCreateError(f"{error}; its folder is left alone: remove it, or choose another --out") from None
    if difference := recipe.difference(manifest):
        raise CannotCreateError(f"{shown(out)} was prepared with {difference}; choose another --out")
    if bad := verify_folder(out):
        name, reason = bad[0]
        raise BadDataError(f"{shown(out)} is damaged ({name}: {reason[:60]}); rm -r it, then run the same command")
    return manifest


def _fill(out: Path, recipe: Recipe, sources: Sources, workers: int, progress: Progress) -> Manifest:
    total = sum(file.bytes for file in recipe.files)
    tokenizer = make_tokenizer(recipe, sources, lambda done: progress("vocabulary", done, total))
    tokenizer.save(out / TOKENIZER)
    tally = Tally()
    parts = _parts(recipe, sources, tokenizer, tally)
    workers = workers if total > SMALL_BYTES else 1
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(out, recipe.corpus.name, s, tokenizer)) for s in SPLITS}
        for result in encode_batches(batches(parts), out / TOKENIZER, recipe.end_of_text(tokenizer), workers):
            for encoded in result.encoded:
                writers[encoded.split].write(encoded.ids, encoded.ends)
            progress("tokens", result.read_bytes, total)
        _refuse_empty_split(recipe, tally)
        refuse_changed(sources)
    manifest = _manifest(out, recipe, sources, tokenizer, tally, {s: writers[s].records for s in SPLITS})
    write_atomic(out / MANIFEST, manifest.to_bytes())
    return manifest


def _parts(recipe: Recipe, sources: Sources, tokenizer: Tokenizer, tally: Tally) -> Iterator[tuple[Part, int]]:
    """What there is to encode, in order, each with the bytes read so far; documents are counted on the way."""
    before = 0
    for text in split_texts(recipe, sources):
        tally.add(text)
        pieces = list(tokenizer.pieces(text.text))
        for number, piece in enumerate(pieces, 1):
            read_bytes = before + (text.read_bytes - before) * number // len(pieces)
            yield Part(text.split, piece, last=number == len(pieces)), read_bytes
        before = text.read_bytes


def _refuse_empty_split(recipe: Recipe, tally: Tally) -> None:
    total = sum(tally.documents.values())
    if not total:
        raise BadDataError(f"there is no text in the sources ({tally.empty} empty documents); give others")
    for split in SPLITS:
        if not tally.documents[split]:
            advice = f"{'raise' if split == 'val' else 'lower'} --val-fraction (now {recipe.split.val_fraction:g})"
            if total == 1 and recipe.split.rule == "documents":
                advice = "one document cannot go to both: for a single text type --split characters"
            raise BadDataError(f"the {split} split got none of {total} documents; {advice}, or add text")


def _manifest(
    out: Path,
    recipe: Recipe,
    sources: Sources,
    tokenizer: Tokenizer,
    tally: Tally,
    shards: dict[SplitName, list[ShardRecord]],
) -> Manifest:
    saved = out / TOKENIZER
    return Manifest(
        name=recipe.corpus.name,
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            spec=recipe.spec,
            n_vocab=tokenizer.n_vocab,
            eot_id=tokenizer.eot_id,
            fingerprint=tokenizer.fingerprint,
            probe=tokenizer.probe(),
            file=FileRecord(name=TOKENIZER, bytes=saved.stat().st_size, sha256=sha256_file(saved)),
        ),
        eot="append" if recipe.end_of_text(tokenizer) else None,
        errors="strict",
        max_documents=None,
        max_tokens=None,
        counts=CountsRecord(empty=tally.empty),
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
            CorpusRecord(
                corpus=recipe.corpus.name,
                description=recipe.corpus.description,
                licence=recipe.corpus.licence,
                address=recipe.corpus.address,
                revision=sources.revision,
                column=recipe.column,
                weight=None,
                split=recipe.split,
                tokens=sum(shard.tokens for split in SPLITS for shard in shards[split]),
                documents=sum(tally.documents.values()),
                files=recipe.files,
            )
        ],
    )


def _no_progress(what: str, done: int, total: int) -> None:
    pass
