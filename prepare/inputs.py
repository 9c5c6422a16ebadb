"""What is read: the corpora that are asked for, their files on this disk or on the hub, and the
recipe they make.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_dist.data.manifest import SourceRecord
from nanogpt_dist.errors import BadDataError, UsageError, one_line
from nanogpt_dist.storage.durable import printable
from prepare.corpora import CORPORA, Corpus, find, plain_name, repository
from prepare.readers.documents import Part
from prepare.readers.formats import format_of
from prepare.readers.tables import row_groups
from prepare.recipe import Ingredient, Options, Recipe, make_ingredient, make_recipe
from prepare.sources.files import FetchedFiles, LocalFiles, SourceFiles
from prepare.sources.local import Hashes, Sources, find_sources, on_disk, records

if TYPE_CHECKING:
    from prepare.sources.hub import HubFiles

Note = Callable[[str], None]
HF = "hf:"  # in front of a repository in a mix


@dataclass(frozen=True)
class Wanted:
    """One corpus that is asked for. given: files or folders to read for it; weight: its part of a
    mix.
    """

    corpus: Corpus
    given: tuple[Path, ...] = ()
    weight: float | None = None


def wanted(
    corpus: str | Corpus,
    given: Sequence[Path],
    mix: Mapping[str, float] | None,
) -> list[Wanted]:
    """What is asked for; in a mix a name of the catalogue, hf:OWNER/NAME, or a path. Raises
    UsageError.
    """
    if not mix:
        return [Wanted(find(corpus) if isinstance(corpus, str) else corpus, tuple(given))]
    return [_part_of_mix(name, weight) for name, weight in mix.items()]


def _part_of_mix(name: str, weight: float) -> Wanted:
    if name in CORPORA and name != "text":
        return Wanted(CORPORA[name], (), weight)
    if name.startswith(HF):
        return Wanted(repository(name.removeprefix(HF)), (), weight)
    if not Path(name).exists() and not any(char in name for char in "*?["):
        near = "hf:OWNER/NAME for a repository of the hub, or a path"
        raise UsageError(
            f"--mix: {name[:60]!r} is neither a corpus (--list) nor there; give {near}"
        )
    local = replace(CORPORA["text"], name=plain_name(Path(name).name) or "text")
    return Wanted(local, (Path(name),), weight)


@dataclass(frozen=True)
class Inputs:
    """The recipe, and where the files of each of its ingredients are. hashes: of local files, for
    the next run.
    """

    recipe: Recipe
    found: "list[Sources | HubFiles]"
    hashes: Hashes

    def open(self, stack: ExitStack, downloads: Path | None, note: Note) -> list[SourceFiles]:
        """The files of each ingredient.

        downloads: where files of the hub go for as long as they are needed; None: its cache, where
        they stay. Raises HubUnavailableError.
        """
        return [
            self._shelf(stack, ingredient, found, downloads, note)
            for ingredient, found in zip(self.recipe.ingredients, self.found, strict=True)
        ]

    def _shelf(
        self,
        stack: ExitStack,
        ingredient: Ingredient,
        found: "Sources | HubFiles",
        downloads: Path | None,
        note: Note,
    ) -> SourceFiles:
        if isinstance(found, Sources):
            return LocalFiles(stack.enter_context(on_disk(ingredient.corpus, found)).files)
        from prepare.sources.prefetch import Fetcher

        return FetchedFiles(found, stack.enter_context(Fetcher(found, downloads, note)))

    def local(self) -> list[Sources]:
        """The ingredients whose files are the user's own."""
        return [
            found
            for found in self.found
            if isinstance(found, Sources) and all(file.path for file in found.files)
        ]


def find_inputs(
    asked: list[Wanted],
    out: Path,
    options: Options,
    known: Hashes,
    pinned: list[Any],
    note: Note,
) -> Inputs:
    """Find all files, and hash those that are here, but for what is `known`; nothing in the folder
    `out` is read.

    pinned: the sources, as Recipe.key has them, of what stands in the output folder: a corpus of
    the hub is read at the revision that it was begun with. Raises UsageError, MissingInputError,
    BadDataError, HubUnavailableError.
    """
    ingredients: list[Ingredient] = []
    found: list[Sources | HubFiles] = []
    hashes: dict[str, tuple[tuple[int, int, int], str]] = {}
    for index, one in enumerate(asked):
        corpus = one.corpus
        if corpus.origin == "hub" and not one.given:
            files = _on_hub(corpus, pinned[index] if index < len(pinned) else {}, note)
            recorded = [
                SourceRecord(name=file.name, bytes=file.bytes, sha256=file.sha256)
                for file in files.files
            ]
            ingredients.append(
                make_ingredient(corpus, recorded, files.revision, options, one.weight)
            )
            found.append(files)
            continue
        sources = find_sources(corpus, one.given, out)
        if sources.ignored:
            names = one_line(", ".join(sources.ignored), 80)
            note(
                "not read, for an unknown ending or as a link to a folder "
                f"({len(sources.ignored)}): {names}"
            )
        for text in sources.notes:
            note(text)
        recorded = records(corpus, sources, known)
        for file, record in zip(sources.files, recorded, strict=True):
            if file.path and file.stamp:
                hashes[printable(file.path)] = file.stamp, record.sha256
        own = (
            replace(options, column=_column_of(sources, options, note))
            if one.weight is not None
            else options
        )
        ingredients.append(make_ingredient(corpus, recorded, sources.revision, own, one.weight))
        found.append(sources)
    return Inputs(make_recipe(ingredients, options), found, hashes)


def _column_of(sources: Sources, options: Options, note: Note) -> str | None:
    """--column for one part of a mix; None, its usual one, where its first document has no such
    field.
    """
    fields = (
        (file, form) for file in sources.files if (form := format_of(file.name)) and form.has_fields
    )
    file, form = next(fields, (None, None))
    if options.column is None or file is None or form is None or file.path is None:
        return options.column
    try:
        in_groups = form.kind in ("parquet", "arrow")
        stop = (
            len(row_groups(file.path, form.kind, options.column))
            if in_groups
            else file.path.stat().st_size
        )
        next(iter(Part(file.path, form, 0, stop, options.column, "strict").documents()), None)
    except BadDataError:
        note(f"{file.name[-60:]} has no text in {options.column}: its usual column is read")
        return None
    return options.column


def _on_hub(corpus: Corpus, pinned: Mapping[str, Any], note: Note) -> "HubFiles":
    from prepare.sources.hub import list_files

    assert corpus.address is not None
    same = all(
        pinned.get(name) == value
        for name, value in (("corpus", corpus.name), ("address", corpus.address))
    )
    revision = corpus.revision or (pinned.get("revision") if same else None)
    return list_files(corpus.address, corpus.config, corpus.hub_split, revision, note)
