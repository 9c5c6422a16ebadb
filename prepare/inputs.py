"""The files to read, found and hashed, here or on the hub, and the recipe that they make."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_dist.data.manifest import SourceRecord
from nanogpt_dist.errors import BadDataError, one_line
from nanogpt_dist.storage.durable import printable
from prepare.corpora import Corpus
from prepare.options import PrepareConfig
from prepare.readers.documents import Part
from prepare.readers.formats import format_of
from prepare.readers.tables import row_groups
from prepare.recipe import Ingredient, Recipe, make_ingredient, make_recipe
from prepare.request import CorpusRequest
from prepare.sources.files import FetchedFiles, LocalFiles, SourceFiles
from prepare.sources.local import Hashes, Sources, find_sources, on_disk, records

if TYPE_CHECKING:
    from prepare.sources.hub import HubFiles

Note = Callable[[str], None]


@dataclass(frozen=True)
class Earlier:
    """What the output folder says of an earlier run. sources: as Recipe.key() has them."""

    hashes: Hashes
    sources: list[Any]

    def source(self, index: int) -> Mapping[str, Any]:
        """Source number `index`; empty where there is none."""
        return self.sources[index] if index < len(self.sources) else {}


@dataclass(frozen=True)
class Inputs:
    """A recipe, and the files of each of its ingredients. hashes: of local files, for later."""

    recipe: Recipe
    files: "list[Sources | HubFiles]"
    hashes: Hashes

    def open(self, stack: ExitStack, downloads: Path | None, note: Note) -> list[SourceFiles]:
        """The files of each ingredient, to be read until `stack` is closed.

        downloads: where files of the hub go for as long as they are needed; None: its cache, where
        they stay. Raises HubUnavailableError.
        """
        opened: list[SourceFiles] = []
        for ingredient, files in zip(self.recipe.ingredients, self.files, strict=True):
            if isinstance(files, Sources):
                sources = stack.enter_context(on_disk(ingredient.corpus, files))
                opened.append(LocalFiles(sources.files))
            else:
                from prepare.sources.prefetch import Fetcher

                fetcher = stack.enter_context(Fetcher(files, downloads, note))
                opened.append(FetchedFiles(files, fetcher))
        return opened

    def local(self) -> list[Sources]:
        """The ingredients whose files are the user's own."""
        return [
            sources
            for sources in self.files
            if isinstance(sources, Sources) and all(file.path for file in sources.files)
        ]


def find_inputs(
    requests: list[CorpusRequest],
    config: PrepareConfig,
    out: Path,
    earlier: Earlier,
    note: Note,
) -> Inputs:
    """Find all files, and hash the local ones that `earlier` has no hash of.

    Nothing in the folder `out` is read. A corpus of the hub is read at the revision of `earlier`.
    Raises UsageError, MissingInputError, BadDataError, HubUnavailableError.
    """
    ingredients: list[Ingredient] = []
    files: list[Sources | HubFiles] = []
    hashes: dict[str, tuple[tuple[int, int, int], str]] = {}
    for index, request in enumerate(requests):
        corpus = request.corpus
        own = config
        found: Sources | HubFiles
        if corpus.origin == "hub" and not request.sources:
            found = _files_on_hub(corpus, earlier.source(index), note)
            recorded = [
                SourceRecord(name=file.name, bytes=file.bytes, sha256=file.sha256)
                for file in found.files
            ]
        else:
            found = _local_files(request, out, note)
            recorded = records(corpus, found, earlier.hashes)
            for file, record in zip(found.files, recorded, strict=True):
                if file.path and file.stamp:
                    hashes[printable(file.path)] = file.stamp, record.sha256
            if request.weight is not None:
                column = _column_of(found, config.column, note)
                own = config.model_copy(update={"column": column})
        ingredients.append(make_ingredient(corpus, recorded, found.revision, own, request.weight))
        files.append(found)
    return Inputs(make_recipe(ingredients, config), files, hashes)


def _local_files(request: CorpusRequest, out: Path, note: Note) -> Sources:
    """The files of a corpus that is no repository; what is left out is told."""
    sources = find_sources(request.corpus, request.sources, out)
    if sources.ignored:
        names = one_line(", ".join(sources.ignored), 80)
        note(
            "not read, for an unknown ending or as a link to a folder "
            f"({len(sources.ignored)}): {names}"
        )
    for text in sources.notes:
        note(text)
    return sources


def _column_of(sources: Sources, column: str | None, note: Note) -> str | None:
    """`column` for one part of a mix; None, its usual one, where its first document has none."""
    if column is None:
        return None
    for file in sources.files:
        form = format_of(file.name)
        if form is None or not form.has_fields:
            continue
        if file.path is None:
            return column
        try:
            if form.kind in ("parquet", "arrow"):
                stop = len(row_groups(file.path, form.kind, column))
            else:
                stop = file.path.stat().st_size
            next(iter(Part(file.path, form, 0, stop, column, "strict").documents()), None)
        except BadDataError:
            note(f"{file.name[-60:]} has no text in {column}: its usual column is read")
            return None
        return column
    return column


def _files_on_hub(corpus: Corpus, pinned: Mapping[str, Any], note: Note) -> "HubFiles":
    """The files of a repository, at the revision of `pinned` where that is the same one."""
    from prepare.sources.hub import list_files

    assert corpus.address is not None
    same = (pinned.get("corpus"), pinned.get("address")) == (corpus.name, corpus.address)
    revision = corpus.revision or (pinned.get("revision") if same else None)
    return list_files(corpus.address, corpus.config, corpus.hub_split, revision, note)
