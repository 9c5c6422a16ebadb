"""From a corpus to a data folder, whose bytes depend on text, tokenizer and options only: `build(...)`.

The folder is filled in units: each is encoded by some process of some rank, and recorded; the leading rank puts them
together into shards meanwhile. Killed at any time, the same call goes on with the units that are missing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanogpt_dist.errors import BadDataError, CannotCreateError, one_line
from nanogpt_dist.shards import SHARD_TOKENS, verify_folder
from nanogpt_dist.shards.manifest import (
    MANIFEST,
    CorpusRecord,
    CountsRecord,
    FileRecord,
    Manifest,
    SplitRecord,
    TokenizerRecord,
)
from nanogpt_dist.storage.durable import printable, sha256_file, shown, write_atomic
from nanogpt_dist.tokenizer import Tokenizer, load
from prepare.assemble import Assembler
from prepare.corpora import CORPORA, Corpus, find
from prepare.encode import Job
from prepare.folder import TOKENIZER, Work, claimed, remove_leftovers
from prepare.pool import encode_units
from prepare.ranks import Ranks
from prepare.recipe import Ingredient, Options, Recipe, difference, key_of, make_ingredient, make_recipe
from prepare.shelf import HubShelf, LocalShelf, Shelf
from prepare.sources import Hashes, Sources, find_sources, on_disk, records, refuse_changed, with_standard_input
from prepare.split import SPLITS
from prepare.units import Unit, parts_of, plan
from prepare.vocabulary import make_tokenizer

SMALL_BYTES = 2 << 20  # below this, starting workers takes longer than they save


@dataclass(frozen=True)
class Machine:
    """How to go about it, which the result does not show.

    workers: processes that encode. streaming: fetch files of the hub when they are needed, and keep none. fresh: start
    over where an unfinished run was. progress: told what is being done, bytes of the sources done and in all, tokens.
    note: told what is left out, and what is gone on with.
    """

    workers: int | None = None
    streaming: bool = False
    fresh: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    progress: Callable[[str, int, int, int], None] = lambda what, done, total, tokens: None
    note: Callable[[str], None] = lambda text: None
    shard_tokens: int = SHARD_TOKENS


def build(
    corpus: str | Corpus,
    out: Path,
    sources: Sequence[Path] = (),
    options: Options | None = None,
    machine: Machine | None = None,
    mix: dict[str, float] | None = None,
) -> Manifest | None:
    """Prepare `corpus` into the folder `out` and return its manifest; None in a rank that only encodes.

    sources: files or folders to read. mix: instead of one corpus, the weights of several, by name or by path.
    A folder that was finished with the same inputs and options is verified and left as it is.
    Raises UsageError, MissingInputError, BadDataError, HubUnavailableError, CannotCreateError, StorageError.
    """
    options, machine, work = options or Options(), machine or Machine(), Work(out)
    with ExitStack() as stack:
        try:
            given = stack.enter_context(with_standard_input(sources))
            return _build(stack, _corpora(corpus, given, mix), work, options, machine)
        except BaseException as error:
            machine.ranks.report(work, error)
            raise


def _build(stack: ExitStack, corpora: "Corpora", work: Work, options: Options, machine: Machine) -> Manifest | None:
    if not machine.ranks.leads:
        if machine.ranks.wait_for_plan(work):
            _encode_share(stack, corpora, work, options, machine)
        return None
    if work.finished:
        return _finished(stack, corpora, work, options, machine)
    work = stack.enter_context(claimed(work.out, machine.fresh))
    if work.finished:  # another run has finished it just now
        return _finished(stack, corpora, work, options, machine)
    return _fill(stack, corpora, work, options, machine)


Corpora = list[tuple[Corpus, Sequence[Path], float | None]]  # each with its sources and its weight in a mix


def _corpora(corpus: str | Corpus, given: Sequence[Path], mix: dict[str, float] | None) -> Corpora:
    if not mix:
        return [(find(corpus) if isinstance(corpus, str) else corpus, given, None)]
    return [
        (CORPORA[name], (), weight) if name in CORPORA else (CORPORA["text"], [Path(name)], weight)
        for name, weight in mix.items()
    ]


def default_workers() -> int:
    """One process for each core that we may use, at most 8."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@dataclass(frozen=True)
class _Inputs:
    """What is read: the recipe, and where the files of each ingredient lie."""

    recipe: Recipe
    found: list[Sources | None]  # None: on the hub
    shelves: list[Shelf]
    hashes: Hashes


def _inputs(stack: ExitStack, corpora: Corpora, work: Work, options: Options, machine: Machine) -> _Inputs:
    """Find all files, on this disk or the hub; those of an unfinished run are hashed only where they have changed."""
    key, known = work.read_plan()
    ingredients: list[Ingredient] = []
    found: list[Sources | None] = []
    shelves: list[Shelf] = []
    hashes: dict[str, tuple[tuple[int, int, int], str]] = {}
    for index, (corpus, given, weight) in enumerate(corpora):
        if corpus.origin == "hub" and not given:
            pinned = corpus.revision or (
                key["sources"][index]["revision"] if key and index < len(key["sources"]) else None
            )
            ingredient, shelf = _on_hub(stack, replace(corpus, revision=pinned), work, options, machine, weight)
            found.append(None)
        else:
            sources = find_sources(corpus, given)
            if sources.ignored:
                names = one_line(", ".join(sources.ignored), 80)
                machine.note(
                    f"not read, for an unknown ending or as a link to a folder ({len(sources.ignored)}): {names}"
                )
            files = records(corpus, sources, known)
            sources = stack.enter_context(on_disk(corpus, sources))
            for file, record in zip(sources.files, files, strict=True):
                if file.path and file.stamp:
                    hashes[printable(file.path)] = file.stamp, record.sha256
            ingredient, shelf = (
                make_ingredient(corpus, files, sources.revision, options, weight),
                LocalShelf(sources.files),
            )
            found.append(sources)
        ingredients.append(ingredient)
        shelves.append(shelf)
    return _Inputs(make_recipe(ingredients, options), found, shelves, hashes)


def _on_hub(
    stack: ExitStack, corpus: Corpus, work: Work, options: Options, machine: Machine, weight: float | None
) -> tuple[Ingredient, Shelf]:
    from nanogpt_dist.shards.manifest import SourceRecord
    from prepare.fetching import Fetcher
    from prepare.hub import list_files

    assert corpus.address is not None
    files = list_files(corpus.address, corpus.config, corpus.hub_split, corpus.revision, machine.note)
    recorded = [SourceRecord(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in files.files]
    folder = work.downloads / str(machine.ranks.rank) if machine.streaming else None
    fetcher = stack.enter_context(Fetcher(files, folder, machine.note))
    shelf = HubShelf(files, fetcher, machine.ranks.size)
    return make_ingredient(corpus, recorded, files.revision, options, weight), shelf


def _finished(stack: ExitStack, corpora: Corpora, work: Work, options: Options, machine: Machine) -> Manifest:
    """The manifest of a finished folder, if it is what the recipe would make, and every byte of it is good."""
    out = work.out
    try:
        manifest, _ = Manifest.read(out)
    except BadDataError as error:
        raise CannotCreateError(f"{error}; its folder is left alone: remove it, or choose another --out") from None
    corpora = [
        (replace(corpus, revision=corpus.revision or source.revision), given, weight)
        if corpus.origin == "hub"
        else (corpus, given, weight)
        for (corpus, given, weight), source in zip(
            corpora, [*manifest.sources, *manifest.sources[:1] * len(corpora)], strict=False
        )
    ]
    recipe = _inputs(stack, corpora, work, options, machine).recipe
    if what := difference(key_of(manifest, recipe), recipe.key()):
        raise CannotCreateError(f"{shown(out)} was prepared with {what}; choose another --out")
    if bad := verify_folder(out):
        name, reason = bad[0]
        raise BadDataError(f"{shown(out)} is damaged ({name}: {reason[:60]}); rm -r it, then run the same command")
    remove_leftovers(out)
    return manifest


def _fill(stack: ExitStack, corpora: Corpora, work: Work, options: Options, machine: Machine) -> Manifest:
    """Everything from the plan to the manifest."""
    inputs = _inputs(stack, corpora, work, options, machine)
    recipe = inputs.recipe
    _go_on_with(work, inputs, machine)
    units = plan(recipe, inputs.shelves, recipe.known.cuttable if recipe.known else True)
    total = sum(unit.bytes for unit in units)
    tokenizer = _tokenizer(
        work, recipe, units, inputs.shelves, lambda done: machine.progress("vocabulary", done, total, 0)
    )
    machine.ranks.announce(work)
    with Assembler(work, recipe, tokenizer, units, machine.shard_tokens) as assembler:
        missing = {unit.index for unit in assembler.missing()}
        for index in missing:
            work.forget(index)
        if len(missing) < len(units):
            machine.note(f"going on: {len(units) - len(missing)} of {len(units)} units were done before")
        meter = _Meter(units, missing, machine)
        assembler.advance()
        mine = [unit for unit in units if unit.index in missing and _is_mine(unit, recipe, machine.ranks)]
        wanted = (unit for unit in mine if not (assembler.limits and assembler.limits.reached(unit.ingredient)))
        for unit, tokens in _encode(wanted, mine, recipe, tokenizer, inputs.shelves, work, machine):
            meter.done(unit, tokens)
            assembler.advance()
        machine.ranks.wait_for_others(work, assembler.advance)
        try:
            _refuse_empty_split(recipe, assembler)
            for sources in inputs.found:
                if sources:
                    refuse_changed(sources)
        except BadDataError:
            work.worthless = True
            raise
        assembler.finish()
    manifest = _manifest(work, recipe, tokenizer, assembler)
    write_atomic(work.out / MANIFEST, manifest.to_bytes())
    return manifest


def _encode_share(stack: ExitStack, corpora: Corpora, work: Work, options: Options, machine: Machine) -> None:
    """A rank that does not lead: encode what is its own of what is missing."""
    inputs = _inputs(stack, corpora, work, options, machine)
    recipe = inputs.recipe
    key, _ = work.read_plan()
    if key is None or (what := difference(key, recipe.key())):
        raise BadDataError(
            f"rank {machine.ranks.rank} sees {what if key else 'no plan'}; give all ranks the same sources"
        )
    units = plan(recipe, inputs.shelves, recipe.known.cuttable if recipe.known else True)
    mine = [unit for unit in units if _is_mine(unit, recipe, machine.ranks) and work.record(unit.index) is None]
    tokenizer = load(work.out / TOKENIZER)
    for _ in _encode(mine, mine, recipe, tokenizer, inputs.shelves, work, machine):
        pass


def _go_on_with(work: Work, inputs: _Inputs, machine: Machine) -> None:
    """Write the plan down; one that is there already has to be the same."""
    key, new = work.read_plan()[0], inputs.recipe.key()
    if key is not None:
        if key["errors"] == "strict":  # what was done under it holds under any
            key["errors"] = new["errors"]
        if what := difference(key, new):
            out = shown(work.out)
            raise CannotCreateError(
                f"{out} holds an unfinished prepare with {what}; finish it, add --fresh, or choose another --out"
            )
    work.write_plan(new, inputs.hashes)


def _tokenizer(
    work: Work, recipe: Recipe, units: list[Unit], shelves: list[Shelf], report: Callable[[int], None]
) -> Tokenizer:
    """The tokenizer in the folder, made if it is not there yet."""
    path = work.out / TOKENIZER
    if path.exists():
        return load(path)
    made = make_tokenizer(recipe, units, shelves, report)
    made.save(path)
    return made


def _is_mine(unit: Unit, recipe: Recipe, ranks: Ranks) -> bool:
    """Whether this rank encodes a unit. Files of the hub are shared out whole, or each rank would fetch them all."""
    if recipe.ingredients[unit.ingredient].corpus.origin == "hub":
        return unit.slices[0].file % ranks.size == ranks.rank
    return unit.index % ranks.size == ranks.rank


def _encode(
    wanted: Iterator[Unit] | Sequence[Unit],
    all_of_them: Sequence[Unit],
    recipe: Recipe,
    tokenizer: Tokenizer,
    shelves: list[Shelf],
    work: Work,
    machine: Machine,
) -> Iterator[tuple[Unit, int]]:
    """Encode units; each with its tokens, once it is done. A file is released with the last unit that needs it."""
    by_index = {unit.index: unit for unit in all_of_them}
    needed: dict[tuple[int, int], int] = {}
    for unit in all_of_them:
        for file in unit.files:
            needed[unit.ingredient, file] = needed.get((unit.ingredient, file), 0) + 1
    small = sum(unit.bytes for unit in all_of_them) <= SMALL_BYTES
    workers = 1 if small else min(machine.workers or _share_of_cores(machine.ranks), len(all_of_them))
    jobs = (_job(unit, recipe, tokenizer, shelves[unit.ingredient]) for unit in wanted)
    for record in encode_units(jobs, work.out / TOKENIZER, work.units, max(1, workers), work.trace):
        unit = by_index[record.unit]
        for file in unit.files:
            needed[unit.ingredient, file] -= 1
            if not needed[unit.ingredient, file]:
                shelves[unit.ingredient].release(file)
        yield unit, (record.train[0] + record.val[0]) // tokenizer.dtype.itemsize


def _share_of_cores(ranks: Ranks) -> int:
    """Workers of each rank, where torchrun has started several on this machine."""
    import os

    return max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _job(unit: Unit, recipe: Recipe, tokenizer: Tokenizer, shelf: Shelf) -> Job:
    ingredient = recipe.ingredients[unit.ingredient]
    mixed = ingredient.weight is not None
    return Job(
        unit=unit.index,
        slices=parts_of(unit, ingredient, shelf, recipe.errors),
        split=ingredient.split,
        eot=recipe.eot_of(tokenizer),
        max_documents=None if mixed else recipe.max_documents,
        max_tokens=recipe.max_tokens,
    )


class _Meter:
    """Bytes and tokens done, for the progress bar."""

    def __init__(self, units: list[Unit], missing: set[int], machine: Machine) -> None:
        self.total, self.machine, self.tokens = sum(unit.bytes for unit in units), machine, 0
        self.bytes = sum(unit.bytes for unit in units if unit.index not in missing)

    def done(self, unit: Unit, tokens: int) -> None:
        self.bytes += unit.bytes
        self.tokens += tokens
        self.machine.progress("tokens", self.bytes, self.total, self.tokens)


def _refuse_empty_split(recipe: Recipe, assembler: Assembler) -> None:
    tally = assembler.tally
    total = sum(tally.documents.values())
    if not total:
        raise BadDataError(f"there is no text in the sources ({tally.empty} empty documents); give others")
    rule = recipe.ingredients[0].split
    for split in SPLITS:
        if not assembler.position[split]:
            advice = f"{'raise' if split == 'val' else 'lower'} --val-fraction (now {rule.val_fraction:g})"
            if total == 1 and rule.rule == "documents":
                advice = "one document cannot go to both: for a single text type --split-by characters"
            raise BadDataError(f"the {split} split got none of {total} documents; {advice}, or add text")


def _manifest(work: Work, recipe: Recipe, tokenizer: Tokenizer, assembler: Assembler) -> Manifest:
    saved, tally = work.out / TOKENIZER, assembler.tally
    shards = {split: assembler.writers[split].records for split in SPLITS}
    return Manifest(
        name=recipe.name,
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            spec=recipe.spec,
            n_vocab=tokenizer.n_vocab,
            eot_id=tokenizer.eot_id,
            fingerprint=tokenizer.fingerprint,
            probe=tokenizer.probe(),
            file=FileRecord(name=TOKENIZER, bytes=saved.stat().st_size, sha256=sha256_file(saved)),
        ),
        eot=recipe.eot_of(tokenizer),
        errors=recipe.errors,
        max_documents=recipe.max_documents,
        max_tokens=recipe.max_tokens,
        counts=CountsRecord(empty=tally.empty, replaced=tally.replaced, skipped=tally.skipped, special=tally.special),
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
                corpus=ingredient.corpus.name,
                description=ingredient.corpus.description,
                licence=ingredient.corpus.licence,
                address=ingredient.corpus.address,
                config=ingredient.corpus.config,
                hub_split=ingredient.corpus.hub_split if ingredient.corpus.origin == "hub" else None,
                revision=ingredient.revision,
                column=ingredient.column,
                weight=ingredient.weight,
                split=ingredient.split,
                tokens=tokens,
                documents=documents,
                files=ingredient.files,
            )
            for ingredient, (tokens, documents) in zip(recipe.ingredients, tally.by_ingredient, strict=True)
        ],
    )
