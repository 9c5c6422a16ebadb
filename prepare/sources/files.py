"""The files of one ingredient: on this disk, or fetched from the hub on demand."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nanogpt_dist.errors import HubUnavailableError
from prepare.readers.formats import format_of
from prepare.readers.tables import RowGroup, row_groups
from prepare.sources.local import Source

if TYPE_CHECKING:
    from prepare.sources.hub import HubFiles
    from prepare.sources.prefetch import Fetcher


class SourceFiles(Protocol):
    """Files by their number in the ingredient."""

    def path(self, file: int) -> Path:
        """The file, whole and on this disk. Raises HubUnavailableError."""

    def row_groups(self, file: int, column: str) -> list[RowGroup]:
        """The groups of a table, for which the file need not be here.

        Raises BadDataError, HubUnavailableError.
        """

    def expect(self, file: int) -> None:
        """The file will be asked for: it may be fetched ahead."""

    def release(self, file: int) -> None:
        """The file is not needed any more."""


@dataclass(frozen=True)
class LocalFiles:
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

    def expect(self, file: int) -> None:
        pass

    def release(self, file: int) -> None:
        pass


class FetchedFiles:
    """Files of the hub, fetched by a Fetcher."""

    def __init__(self, files: "HubFiles", fetcher: "Fetcher") -> None:
        self.files, self.fetcher = files, fetcher
        # by the footers, which no hash covers
        self.planned: dict[int, tuple[str, list[RowGroup]]] = {}

    def path(self, file: int) -> Path:
        path = self.fetcher.path(file)
        if file in self.planned:
            column, groups = self.planned.pop(file)
            if row_groups(path, "parquet", column) != groups:
                name = self.files.files[file].name[-60:]
                raise HubUnavailableError(
                    f"the hub gave a wrong footer for {name}; run the same command again"
                )
        return path

    def row_groups(self, file: int, column: str) -> list[RowGroup]:
        from prepare.sources.hub import row_groups as of_footer

        if not self.files.files[file].name.lower().endswith(".parquet"):
            return row_groups(self.path(file), "arrow", column)
        groups = of_footer(self.files, file, column, self.fetcher.note)
        self.planned[file] = column, groups
        return groups

    def expect(self, file: int) -> None:
        self.fetcher.expect(file)

    def release(self, file: int) -> None:
        self.fetcher.release(file)
