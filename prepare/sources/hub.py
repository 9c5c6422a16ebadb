"""Data sets of the hub: which files they have, and fetching them, every byte checked.

Which files belong to a split is for `datasets` to say, which knows the README's YAML and the usual
patterns. Sizes and hashes come from the hub, the files through its own cache (HF_HOME), at one
commit.
"""

import hashlib
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import (
    BadDataError,
    HubUnavailableError,
    MissingInputError,
    StorageError,
    UsageError,
)
from nanogpt_dist.hub import (
    RepoFile,
    WrongBytesError,
    datasets_library,
    denied,
    download,
    hub_errors,
    hub_library,
    is_blob,
)
from nanogpt_dist.hub_retries import AGAIN, RetryPolicy, is_commit, retrying
from nanogpt_dist.storage.durable import (
    make_folder,
    read_small,
    remove,
    sha256_file,
    write_atomic,
)
from prepare.readers.tables import RowGroup, groups_of_metadata

PACKABLE = (".jsonl", ".ndjson", ".json", ".txt", ".md")  # these also with .gz or .zst behind
ENDINGS = (
    ".parquet",
    ".arrow",
    *PACKABLE,
    *(ending + pack for ending in PACKABLE for pack in (".gz", ".zst")),
)
# where the hub keeps its own parquet of what a loading script yields
EXPORT = "refs/convert/parquet"
NAMES_AT_ONCE = 100  # in one question for sizes and hashes
FOOTER_BYTES = 1 << 16  # of a .parquet file, fetched at once; some have more
Note = Callable[[str], None]


@dataclass(frozen=True)
class HubFile:
    """name: its path in the repository; sha256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class HubFiles:
    """The files of one split, in the order in which `datasets` reads them.

    revision: the commit they are taken from.
    """

    repo: str
    revision: str
    files: tuple[HubFile, ...]


def list_files(
    repo: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    note: Note | None = None,
) -> HubFiles:
    """The data files of `split` in the configuration `config` of a dataset.

    config None: the repository's default.

    A repository that still has a loading script is read from the hub's parquet export; then
    `revision` is ignored. The answer is kept under HF_HOME: for a full commit, and offline, the hub
    is not asked again. Raises UsageError for a configuration, split, revision or file ending that
    does not exist, with those that do; MissingInputError for a dataset that is not there or closed;
    HubUnavailableError; StorageError.
    """
    hub = hub_library()
    known = _recall(repo, config, split, revision)
    if known and (is_commit(revision) or hub.constants.HF_HUB_OFFLINE):
        return known
    with retrying(RetryPolicy(note=note)), hub_errors(repo, revision):
        commit = hub.HfApi().dataset_info(repo, revision=revision).sha
        try:
            names = _names(repo, config, split, commit)
        except _NotThereError as missing:
            commit, names = _exported(repo, config, split, commit, missing)
        strange = [name for name in names if not name.lower().endswith(ENDINGS)]
        if strange or not names:
            raise UsageError(
                f"cannot read {', '.join(strange)[:60] or 'nothing'} of {repo[:50]}; "
                f"{_what_we_read()}"
            )
        files = HubFiles(repo, commit, tuple(_facts(repo, commit, names)))
    for asked in {revision, commit}:
        _remember(files, config, split, asked)
    return files


def _what_we_read() -> str:
    return f"files are to end in {' '.join(ENDINGS[:7])}, the last five also with .gz .zst"


class _NotThereError(Exception):
    """`datasets` does not find what was asked for; the message is for the user.

    script: for want of an export.
    """

    script = False


def _names(repo: str, config: str | None, split: str, commit: str) -> list[str]:
    """Paths in the repository, as `datasets` would read them. Raises _NotThereError."""
    datasets = datasets_library()
    # not what was loaded here some other day
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as scratch:
        try:
            builder = datasets.load_dataset_builder(
                repo, config, revision=commit, cache_dir=scratch
            )
        except RuntimeError as error:
            if "script" not in str(error):
                raise
            missing = _NotThereError(str(error))
            missing.script = True
            raise missing from error
        except ValueError as error:  # no such configuration, or several and none is the default
            if not str(error).startswith(("BuilderConfig", "Config name")):
                raise
            there = datasets.get_dataset_config_names(repo, revision=commit)
            raise _NotThereError(_choice(repo, "configuration", config, there)) from error
        except datasets.exceptions.DatasetNotFoundError as error:
            raise denied(repo) from error
        except FileNotFoundError as error:
            raise _NotThereError(f"{repo[:60]} has no data files; {_what_we_read()}") from error
    of_split = {
        str(name): list(addresses) for name, addresses in (builder.config.data_files or {}).items()
    }
    if split not in of_split:
        raise _NotThereError(_choice(repo, "split", split, of_split))
    return [address.partition(f"@{commit}/")[2] for address in of_split[split]]


def _choice(repo: str, kind: str, asked: str | None, there: Any) -> str:
    return (
        f"{repo[:50]} has no {kind} {str(asked or 'by default')[:30]}; choose one of: "
        f"{', '.join(sorted(there))[:80]}"
    )


def _exported(
    repo: str,
    config: str | None,
    split: str,
    commit: str,
    missing: _NotThereError,
) -> tuple[str, list[str]]:
    """Commit and files of the hub's parquet export: CONFIG/SPLIT/0000.parquet and so on.

    Tried for a loading script, and where `commit` is the export's own. Raises UsageError,
    MissingInputError.
    """
    hub = hub_library()
    api = hub.HfApi()
    try:
        export = api.dataset_info(repo, revision=EXPORT).sha
    except hub.errors.RevisionNotFoundError:
        export = None
    if not missing.script and commit != export:
        raise UsageError(str(missing)) from missing
    if export is None:
        raise MissingInputError(
            f"{repo[:60]} has a loading script and no parquet export; prepare its files as text"
        )

    def entries(path: str) -> list[str]:
        return [
            entry.path
            for entry in api.list_repo_tree(
                repo, path or None, repo_type="dataset", revision=export
            )
        ]

    configs = [path for path in entries("") if "." not in path]
    config = config or (configs[0] if len(configs) == 1 else "default")
    if config not in configs:
        raise UsageError(_choice(repo, "configuration", config, configs))
    splits = [path.rpartition("/")[2] for path in entries(config)]
    if split not in splits and f"partial-{split}" in splits:
        part = f"the hub's parquet export has only a part of {repo[:50]}"
        raise MissingInputError(
            f"{part}, its split partial-{split[:20]}; take that one, or prepare its files as text"
        )
    if split not in splits:
        raise UsageError(_choice(repo, "split", split, splits))
    return export, sorted(
        name for name in entries(f"{config}/{split}") if name.endswith(".parquet")
    )


def _facts(repo: str, commit: str, names: list[str]) -> Iterator[HubFile]:
    """Size and sha256 of each file.

    Small ones outside of LFS have a git hash only, so these are fetched.
    """
    hub = hub_library()
    found: dict[str, Any] = {}
    for start in range(0, len(names), NAMES_AT_ONCE):
        some = names[start : start + NAMES_AT_ONCE]
        answer = hub.HfApi().get_paths_info(repo, some, repo_type="dataset", revision=commit)
        found |= {entry.path: entry for entry in answer}
    for name in names:
        if name not in found:
            raise HubUnavailableError(
                f"hub says nothing about {name[-60:]} of {repo[:50]}; {AGAIN}"
            )
        entry = found[name]
        if entry.lfs:
            sha256 = entry.lfs["sha256"]
        else:
            path = fetch(repo, commit, name, None, partial(is_blob, git_hash=entry.blob_id))
            sha256 = sha256_file(path)
        if type(entry.size) is not int or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise HubUnavailableError(
                f"hub gives no size or no sha256 of {name[-60:]} of {repo[:50]}; {AGAIN}"
            )
        yield HubFile(name, entry.size, sha256)


def fetch(
    repo: str,
    commit: str,
    name: str,
    folder: Path | None,
    is_good: Callable[[Path], bool],
) -> Path:
    """As hub.download(), of a dataset; after wrong bytes the hub's list is asked for anew."""
    try:
        return download(RepoFile(repo, commit, name), is_good, folder)
    except WrongBytesError:
        _forget(repo)
        raise


def row_groups(
    files: HubFiles,
    index: int,
    column: str,
    note: Note | None = None,
) -> list[RowGroup]:
    """The row groups of a .parquet file, from its last bytes only.

    These are in the user's cache, or asked for from the hub.

    The footer is not covered by the file's hash until the whole file is here.
    Raises BadDataError, also when there is no such column, HubUnavailableError, MissingInputError.
    """
    from pyarrow import ArrowException, BufferReader, parquet

    name = files.files[index].name
    with retrying(RetryPolicy(note=note)), hub_errors(files.repo, files.revision):
        try:
            footer = parquet.read_metadata(
                _cached(files, index) or BufferReader(_footer(files, index))
            )
        except ArrowException:  # the copy in the cache is damaged, or the bytes were on the way
            try:
                footer = parquet.read_metadata(BufferReader(_footer(files, index)))
            except ArrowException as error:
                raise BadDataError(
                    f"{name[-80:]} of {files.repo[:50]} is no parquet file; {AGAIN}"
                ) from error
    return groups_of_metadata(footer, footer.schema.to_arrow_schema(), column, name[-60:])


def _cached(files: HubFiles, index: int) -> str | None:
    """Where the user's cache has the file, whole though unchecked."""
    file = files.files[index]
    path = hub_library().try_to_load_from_cache(
        files.repo, file.name, revision=files.revision, repo_type="dataset"
    )
    return path if isinstance(path, str) and Path(path).stat().st_size == file.bytes else None


def _footer(files: HubFiles, index: int) -> bytes:
    """The end of a .parquet file, from its footer on: thrift data, its length in 4 bytes, PAR1."""
    file = files.files[index]
    tail = _tail(files, file, min(FOOTER_BYTES, file.bytes))
    need = struct.unpack("<I", tail[-8:-4])[0] + 8 if len(tail) >= 8 else 8
    if len(tail) < need <= file.bytes:
        tail = _tail(files, file, need)
    return b"PAR1" + tail[-need:]


def _tail(files: HubFiles, file: HubFile, size: int) -> bytes:
    hub = hub_library()
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    address = hub.hf_hub_url(files.repo, file.name, repo_type="dataset", revision=files.revision)
    headers = {
        **build_hf_headers(),
        "Range": f"bytes={file.bytes - size}-",
        "Accept-Encoding": "identity",
    }
    answer = get_session().get(address, headers=headers)
    hf_raise_for_status(answer)
    data: bytes = answer.content[-size:]  # all of it, should the hub not serve parts
    if len(data) != size:
        raise HubUnavailableError(
            f"hub served {len(data):,} bytes of {file.name[-60:]}, not {size:,}; {AGAIN}"
        )
    return data


def _notes(repo: str) -> Path:
    """Where the answers of list_files about a dataset are kept."""
    return Path(hub_library().constants.HF_HOME) / "nanogpt" / repo.replace("/", "--")


def _note_name(config: str | None, split: str, revision: str | None) -> str:
    return hashlib.sha256(json.dumps([config, split, revision]).encode()).hexdigest()[:32] + ".json"


def _remember(files: HubFiles, config: str | None, split: str, revision: str | None) -> None:
    folder = _notes(files.repo)
    with suppress(OSError, StorageError):  # a cache that is read-only
        make_folder(folder)
        write_atomic(
            folder / _note_name(config, split, revision),
            json.dumps(asdict(files), indent=1).encode(),
        )


def _recall(repo: str, config: str | None, split: str, revision: str | None) -> HubFiles | None:
    try:
        note = json.loads(read_small(_notes(repo) / _note_name(config, split, revision)))
        files = HubFiles(
            note["repo"], note["revision"], tuple(HubFile(**file) for file in note["files"])
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError, BadDataError):
        return None
    kinds = {"name": str, "bytes": int, "sha256": str}
    good = all(type(getattr(file, key)) is kinds[key] for file in files.files for key in kinds)
    return files if good and files.repo == repo and is_commit(files.revision) else None


def _forget(repo: str) -> None:
    """Let the hub be asked again: its list of files may have been wrong, not the files."""
    with suppress(OSError):
        remove(_notes(repo))
