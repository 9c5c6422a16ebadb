"""Files that are not read: what they are, by name, and what to type instead."""

import re
from collections.abc import Sequence

from prepare.readers.formats import Format, format_of

_STDIN = "nanogpt prepare text --source -"
_ARCHIVES = {
    ".zip": "unzip FILE -d FOLDER",
    ".tar": "tar -xf FILE -C FOLDER",
    ".tgz": "tar -xf FILE -C FOLDER",
    ".7z": "7z x FILE -oFOLDER",
    ".rar": "unrar x FILE FOLDER/",
}
_PACKERS = {
    ".gz": "zcat",
    ".zst": "zstdcat",
    ".bz2": "bzcat",
    ".xz": "xzcat",
    ".lzma": "xzcat",
    ".lz4": "lz4cat",
    ".br": "brotli -dc",
}
_TABLES = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".xlsx": "read_excel",
    ".feather": "read_feather",
    ".orc": "read_orc",
}
_MARKED_UP = (".html", ".htm", ".docx", ".odt", ".epub", ".rtf", ".rst", ".tex", ".ipynb")


def how_to_read(name: str) -> str:
    """What a file is that is_readable refuses, and what to type instead."""
    ending = next((ending for ending in _PACKERS if name.lower().endswith(ending)), "")
    inner = name[: len(name) - len(ending)].lower()
    for archive, unpack in _ARCHIVES.items():
        if inner.endswith(archive):
            return f"an archive; type: {unpack} and give FOLDER"
    if ending:
        form = format_of(inner)
        if (form is None and "." in inner[1:]) or (form and form.kind in ("parquet", "arrow")):
            return f"unpack it: {_PACKERS[ending]} FILE > NEWFILE, and give that"
        return (
            f"type: {_PACKERS[ending]} FILE | "
            f"{_STDIN}{'.jsonl' if form and form.has_fields else ''}"
        )
    for table, read in _TABLES.items():
        if inner.endswith(table):
            return (
                'a table; type: python -c "import pandas; '
                f"pandas.{read}('FILE').to_parquet('FILE.parquet')\""
            )
    if inner.endswith(".pdf"):
        return "take its text out: pdftotext FILE FILE.txt"
    if inner.endswith(_MARKED_UP):
        return "take its text out, with pandoc for one: pandoc FILE -t plain -o FILE.txt"
    if inner.endswith(".bin"):
        return "if it holds token ids, see nanogpt import-shards --help"
    return f"to read it as one text type: {_STDIN} < FILE"


_ABOUT = re.compile(
    r"(readme|licen[sc]e|copying|notice|citation|contributing|code_of_conduct|changelog)([-._][\w.-]*)?",
    re.I,
)
_TEXTS = (Format("text"), Format("text", ".gz"), Format("text", ".zst"))
_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# what map() and filter() of `datasets` have made of the others
_CACHED = re.compile(r"cache-[0-9a-f]{16}.*\.arrow")


def is_about(path: str) -> bool:
    """Whether a file is called as one about others is: README.md, LICENSE.txt."""
    return bool(_ABOUT.fullmatch(path.rpartition("/")[2]))


def beside_records(paths: Sequence[str]) -> set[str]:
    """Those files of a folder that are about its files of records.

    A clone's README.md, and what `datasets` writes beside .arrow in save_to_disk and in its cache.
    """
    tables = {
        path for path in paths if (form := format_of(path)) and form.kind in ("parquet", "arrow")
    }
    names = {path: path.rpartition("/")[2] for path in paths}
    found = {
        path
        for path in paths
        if names[path] in _OF_DATASETS and (tables or names[path] != "state.json")
    }
    if not any(
        (form := format_of(path)) and form.has_fields for path in paths if path not in found
    ):
        return set()
    found |= {path for path in paths if is_about(path) and format_of(path) in _TEXTS}
    folders = {path.rpartition("/")[0] for path in found if names[path] == "dataset_info.json"}
    return found | {
        path
        for path in tables
        if path.rpartition("/")[0] in folders and _CACHED.fullmatch(names[path])
    }
