"""Rows of parquet and arrow files: the size of each group, and the texts of a column."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError, clipped
from nanogpt_dist.storage.durable import shown
from prepare.readers.formats import Kind

BATCH_ROWS = 256
MOST_ROWS = 2**31  # of a group, as of parquet's own writers


@dataclass(frozen=True)
class RowGroup:
    """A row group of parquet or a record batch of arrow.

    bytes: of the column's text in arrow, of all columns in parquet, unpacked.
    """

    rows: int
    bytes: int


def row_groups(path: Path, kind: Kind, column: str) -> list[RowGroup]:
    """The groups of a file, without reading its text.

    Raises BadDataError, also for a column that holds no text.
    """
    with _told(path, kind):
        if kind == "parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                return groups_of_metadata(file.metadata, file.schema_arrow, column, shown(path))
        with _arrow_batches(path) as batches:
            groups = []
            for batch in batches:
                _check_column(batch.schema, column, shown(path))
                batch.column(column).validate()
                groups.append(_group(batch.num_rows, batch.column(column).nbytes, shown(path)))
            return groups


def groups_of_metadata(metadata: Any, schema: Any, column: str, name: str) -> list[RowGroup]:
    """The row groups that a parquet footer lists; schema: the file's as arrow has it."""
    _check_column(schema, column, name)
    # A column's own size is not asked for: where the footer is damaged, or a column is encrypted,
    # pyarrow's RowGroupMetaData.column() ends the process instead of raising.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [_group(group.num_rows, group.total_byte_size, name) for group in groups]


def _group(rows: int, size: int, name: str) -> RowGroup:
    if not 0 <= rows < MOST_ROWS:  # nulls take no bytes, but hours
        raise BadDataError(f"{name} claims {rows:,} rows in one group; get it again")
    return RowGroup(rows, size)


def rows(
    path: Path,
    kind: Kind,
    column: str,
    start: int,
    stop: int,
) -> Iterator[str | bytes | None]:
    """The column's values in groups start … stop.

    Text, bytes where they are not UTF-8, None for null.

    Raises BadDataError for a damaged file, OSError.
    """
    with _told(path, kind):
        if kind == "parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                _check_column(file.schema_arrow, column, shown(path))
                for batch in file.iter_batches(BATCH_ROWS, list(range(start, stop)), [column]):
                    yield from _values(batch.column(0))
        else:
            with _arrow_batches(path) as batches:
                for index, batch in enumerate(batches):
                    if start <= index < stop:
                        _check_column(batch.schema, column, shown(path))
                        texts = batch.column(column)
                        texts.validate(full=True)  # else damaged offsets lead anywhere in memory
                        for first in range(0, batch.num_rows, BATCH_ROWS):
                            yield from _values(texts.slice(first, BATCH_ROWS))
                    elif index >= stop:
                        break


def rows_before(path: Path, kind: Kind, group: int) -> int:
    """The rows in front of a group. Raises BadDataError for a damaged file, OSError."""
    with _told(path, kind):
        if kind == "parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                return sum(file.metadata.row_group(index).num_rows for index in range(group))
        with _arrow_batches(path) as batches:
            return sum(batch.num_rows for batch, _ in zip(batches, range(group), strict=False))


def _values(column: Any) -> list[str | bytes | None]:
    from pyarrow import large_binary, large_string

    if not _is_bytes(column.type):
        try:
            return column.cast(large_string()).to_pylist()
        except UnicodeDecodeError:
            pass
    return [_text_or_bytes(value) for value in column.cast(large_binary()).to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


@contextmanager
def _arrow_batches(path: Path) -> Iterator[Iterator[Any]]:
    """The record batches of an arrow file or stream, mapped, not read.

    The caches of `datasets` are streams.
    """
    import pyarrow

    with pyarrow.memory_map(str(path)) as mapped:
        try:
            reader = pyarrow.ipc.open_file(mapped)
            yield (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            yield iter(pyarrow.ipc.open_stream(mapped))


def _check_column(schema: Any, column: str, name: str) -> None:
    names, column = ", ".join(schema.names)[:60], column[:40]
    if column not in schema.names:
        raise BadDataError(
            f"{name}: no text column {column}; it has: {names}; choose one with --column"
        )
    if (count := schema.names.count(column)) > 1:
        raise BadDataError(
            f"{name}: no text column {column}, but {count} columns of that name; rename them"
        )
    kind = schema.field(column).type
    if not (_is_text(kind) or _is_bytes(kind) or str(kind) == "null"):
        others = ", ".join(field.name for field in schema if _is_text(field.type))[:60]
        advice = (
            f"choose with --column of: {others}"
            if others
            else "no column does; write a text into each row"
        )
        raise BadDataError(f"{name}: column {column} holds {str(kind)[:40]}, not text; {advice}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    """Whether it is text of a writer that does not say so: Spark's binary strings."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


@contextmanager
def _told(path: Path, kind: Kind) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (
        ArrowException,
        UnicodeDecodeError,
        OSError,
    ) as error:  # names of columns are to be UTF-8
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's: damaged pages are OSErrors without a number
        raise BadDataError(
            f"{shown(path)} is no {kind} file, or damaged ({clipped(str(error), 60)}); get it again"
        ) from None
