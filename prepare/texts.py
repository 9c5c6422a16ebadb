"""The texts in files, one after the other, for those who want no shards: `nanogpt tokenizer`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanogpt_dist.errors import BadDataError
from prepare.corpora import find
from prepare.readers.documents import Part
from prepare.readers.formats import Format, format_of
from prepare.readers.tables import row_groups
from prepare.sources.local import find_sources

# Advice for those who type `nanogpt prepare`, behind other advice or before it.
PREPARES = re.compile(
    r"; give --errors \w+, or (?=another)|[,;]?( or)? give --errors \w+( or \w+)?"
)


def read_texts(sources: Sequence[str], column: str) -> Iterator[str]:
    """Every document of some files or folders, or of python-stdlib. Raises as prepare does."""
    for given in sources:
        found = (
            find_sources(find(given), [])
            if given == "python-stdlib"
            else find_sources(find("text"), [Path(given)])
        )
        for file in found.files:
            assert file.path is not None
            form = format_of(file.name) or Format("text")
            in_groups = form.kind in ("parquet", "arrow")
            stop = (
                len(row_groups(file.path, form.kind, column))
                if in_groups
                else file.path.stat().st_size
            )
            try:
                for document in Part(file.path, form, 0, stop, column, "strict").documents():
                    yield (
                        document.text if isinstance(document.text, str) else "".join(document.text)
                    )
            except BadDataError as error:
                raise BadDataError(PREPARES.sub(_in_place_of, str(error))) from None


def _in_place_of(advice: re.Match[str]) -> str:
    return "; give " if advice[0].endswith(", or ") else ""
