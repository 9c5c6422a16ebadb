"""Where the files of one ingredient lie while they are read: on this disk, or fetched from the hub on demand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prepare.formats import format_of
from prepare.sources import Source
from prepare.tables import RowGroup, row_groups

if TYPE_CHECKING:
    from prepare.hub import HubFiles


class Shelf(Protocol):
    """Files by their number in the ingredient."""

    def path(self, file: int) -> Path:
        """The file, whole and on this disk. Raises HubUnavailableError."""

    def row_groups(self, file: int, column: str) -> list[RowGroup]:
        """The groups of a table, for which the file need not be here. Raises BadDataError, HubUnavailableError."""

    def release(self, file: int) -> None:
        """The file is not needed any more."""


@dataclass(frozen=True)
class LocalShelf:
    """Files that are here to stay."""

    files: tuple[Source, ...]

    def path(self, file: int) -> Path:
        path = self.files[file].path
        assert path is not None
        return path

    def row_groups(self, file: int, column: str) -> list[RowGroup]:
        path, form = self.path(file), format_of(self.files[file].name)
        assert form is not None
        return row_groups(path, form.kind, column)

    def release(self, file: int) -> None:
        pass


@contextmanager
def hub_shelf(files: "HubFiles", folder: Path | None) -> Iterator[Shelf]:
    """Files of the hub, in its cache, or in `folder` for as long as each is needed."""
    from prepare.hub import Fetcher
    from prepare.hub import row_groups as hub_row_groups

    with Fetcher(files, folder) as fetcher:

        class HubShelf:
            def path(self, file: int) -> Path:
                return fetcher.path(file)

            def row_groups(self, file: int, column: str) -> list[RowGroup]:
                if files.files[file].name.endswith(".parquet"):
                    return hub_row_groups(files, file, column)
                return row_groups(fetcher.path(file), "arrow", column)

            def release(self, file: int) -> None:
                fetcher.release(file)

        yield HubShelf()
