"""Which files can be read, told by their names: a text is one document, a line or a row is one."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "lines", "parquet", "arrow"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".zst")
ENDINGS = ".txt .md .jsonl .ndjson .json .parquet .arrow (text and lines also .gz, .zst)"


@dataclass(frozen=True)
class Format:
    """kind: what a document is; compression: .gz, .zst or none, only for text and lines."""

    kind: Kind
    compression: str = ""

    @property
    def has_fields(self) -> bool:
        """Whether a document is a record, one of whose fields is the text."""
        return self.kind != "text"


def format_of(name: str) -> Format | None:
    """How to read a file of that name; None: not at all."""
    name = name.lower()
    compression = next((ending for ending in _COMPRESSED if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    kind = next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)
    if kind is None or (compression and kind in ("parquet", "arrow")):
        return None
    return Format(kind, compression)


def is_readable(name: str) -> bool:
    """Whether documents can be read out of a file of that name."""
    return format_of(name) is not None
