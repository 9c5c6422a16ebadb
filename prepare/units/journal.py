"""The output folder while it is filled: its owner, the units done, leftovers of a kill.

    out/tokenizer.json, NAME_train_000000.bin, …     what stays, each whole or absent
    out/.prepare/lock                                 held by the process that assembles the shards
    out/.prepare/plan.json                            what the folder will hold, and sources' hashes
    out/.prepare/run.json                             which run is at work, for its other ranks
    out/.prepare/units/000012.{train,val,documents}   a unit's ids
    out/.prepare/units/000012.json                    its record, written last: the journal
    out/.prepare/shards/NAME_train_000000.json        the manifest's entry of a finished shard

A folder with .prepare and without a manifest is unfinished; with a manifest it is finished, and
.prepare goes.
"""

import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nanogpt_dist.data.manifest import MANIFEST, ShardRecord
from nanogpt_dist.errors import CannotCreateError
from nanogpt_dist.storage.durable import (
    fsync_folder,
    make_folder,
    sha256_file,
    shown,
    storage_errors,
    write_atomic,
)
from nanogpt_dist.storage.runlock import RunLock
from prepare.sources.local import Hashes
from prepare.units.encode import DOCUMENT, UnitRecord, unit_path

WORK = ".prepare"
LOCK = "lock"
TOKENIZER = "tokenizer.json"
_OURS = re.compile(r"\.tmp-.*|tokenizer\.json|[A-Za-z0-9._-]+_(train|val)_\d{6}\.(bin|ends|crc32)")


class WorkFolder:
    """The paths of an output folder, and the journal in it."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / WORK
        self.units, self.shards = self.folder / "units", self.folder / "shards"
        self.plan, self.run = self.folder / "plan.json", self.folder / "run.json"
        self.trace, self.downloads = self.folder / "trace", self.folder / "downloads"
        self.worthless = False  # what was done is of no use to any later run
        self.shared = False  # with other ranks, which look here for what has become of us
        self.digest = ""  # of the plan that is being followed

    @property
    def finished(self) -> bool:
        return (self.out / MANIFEST).exists()

    def read_plan(self) -> tuple[dict[str, Any] | None, Hashes]:
        """The key of what is being made, if something is, and the hashes of its sources."""
        if not self.plan.exists():
            return None, {}
        with storage_errors(self.plan):  # a disk in trouble is no reason to drop what was done
            data = self.plan.read_bytes()
        try:
            content = json.loads(data)
            hashes = {
                path: (tuple(stamp), digest) for path, (stamp, digest) in content["hashes"].items()
            }
            return dict(content["key"]), hashes
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
            return None, {}

    def write_plan(self, key: dict[str, Any], hashes: Hashes) -> None:
        write_atomic(self.plan, json.dumps({"key": key, "hashes": hashes}).encode())

    def read(self, unit: int) -> tuple[UnitRecord, np.ndarray] | None:
        """The record of a unit of this plan, and the table of its documents, if it is done."""
        try:
            record = UnitRecord.parse(unit_path(self.units, unit, "json").read_bytes())
            data = unit_path(self.units, unit, "documents").read_bytes()
            documents = np.frombuffer(data, DOCUMENT)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if record.plan != self.digest or (len(data), zlib.crc32(data)) != record.documents:
            return None
        return record, documents

    def done(self) -> list[int]:
        """The units that have a record."""
        return [int(path.stem) for path in self.units.glob("*.json") if path.stem.isdecimal()]

    def has(self, unit: int, kind: str, expected: tuple[int, int]) -> bool:
        """Whether a file of a unit is there in its full length."""
        try:
            return unit_path(self.units, unit, kind).stat().st_size == expected[0]
        except OSError:
            return False

    def forget(self, unit: int) -> None:
        """The unit has to be done again."""
        unit_path(self.units, unit, "json").unlink(missing_ok=True)

    def record_shard(self, shard: ShardRecord) -> None:
        write_atomic(
            self.shards / f"{Path(shard.file.name).stem}.json", shard.model_dump_json().encode()
        )

    def good_shards(self, name: str, split: str) -> list[ShardRecord]:
        """The first shards of a split that are there and whole; later ones are removed."""
        good: list[ShardRecord] = []
        while (shard := self._shard(f"{name}_{split}_{len(good):06d}")) is not None:
            good.append(shard)
        for path in self.out.glob(f"{name}_{split}_*"):
            number = path.stem.rpartition("_")[2]
            if _OURS.fullmatch(path.name) and int(number) >= len(good):
                (self.shards / f"{path.stem}.json").unlink(missing_ok=True)
                path.unlink()
        return good

    def _shard(self, stem: str) -> ShardRecord | None:
        try:
            shard = ShardRecord.model_validate_json((self.shards / f"{stem}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        for file in (shard.file, shard.checksums, shard.ends):
            path = self.out / file.name
            if (
                not path.is_file()
                or path.stat().st_size != file.bytes
                or sha256_file(path) != file.sha256
            ):
                return None
        return shard


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


@contextmanager
def claimed(out: Path, fresh: bool) -> Iterator[WorkFolder]:
    """Hold `out`, made if need be, for the block.

    What was made is undone if nothing in it is worth keeping.

    fresh: drop what an unfinished run has left. Raises CannotCreateError: in use, not writable,
    holds other files.
    """
    work = WorkFolder(out)
    refuse_strangers(work)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with RunLock(work.folder, LOCK, "--out", work.out):
            try:
                _sweep(work)
                if fresh and not work.finished:
                    clear(work)
                yield work
            finally:
                if not work.finished and (work.worthless or not work.done()):
                    clear(work)
                    if not work.shared:
                        shutil.rmtree(work.folder, ignore_errors=True)
                elif work.finished:
                    shutil.rmtree(work.folder, ignore_errors=True)
                elif not work.shared:
                    _remove_begun(work)
    finally:
        for folder in made:  # those that were made for nothing, the innermost first
            with suppress(OSError):
                folder.rmdir()


def refuse_strangers(work: WorkFolder) -> None:
    """Raises CannotCreateError where the folder holds what is not ours."""
    out = work.out
    if not out.exists() or work.finished:
        return
    if not out.is_dir():
        raise CannotCreateError(f"{shown(out)} is not a folder; choose another --out")
    with storage_errors(out):
        names = sorted(path.name for path in out.iterdir())
    # Without the work folder no prepare was here, so even a file that is named like ours is
    # somebody's.
    others = (
        [name for name in names if name != WORK and not _OURS.fullmatch(name)]
        if WORK in names
        else names
    )
    if others:
        raise CannotCreateError(
            f"{shown(out)} holds {others[0][:40]}, no leftover of prepare; choose another --out"
        )


def _sweep(work: WorkFolder) -> None:
    """Remove what was being written when a run was killed, and make the folders for the rest."""
    with storage_errors(work.folder):
        work.run.unlink(missing_ok=True)
        _make_folders(work)
        _remove_begun(work)
        for path in work.folder.glob("failed-*"):
            path.unlink()


def _remove_begun(work: WorkFolder) -> None:
    """What a worker was writing when it was killed."""
    for folder in (work.out, work.folder, work.units, work.shards):
        for path in folder.glob(".tmp-*"):
            path.unlink(missing_ok=True)


def _make_folders(work: WorkFolder) -> None:
    for folder in (work.units, work.shards):
        make_folder(folder)
    fsync_folder(work.out)


def clear(work: WorkFolder) -> None:
    """Remove all of an unfinished run but the lock."""
    for path in work.out.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in work.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in (work.folder / LOCK, work.run):
            path.unlink(missing_ok=True)
    _make_folders(work)


def remove_leftovers(out: Path) -> None:
    """Remove the work folder of a finished folder, whose run was killed at the very end.

    Raises CannotCreateError.
    """
    work = WorkFolder(out)
    if work.folder.is_dir() and work.finished:
        with RunLock(work.folder, LOCK, "--out", work.out):
            shutil.rmtree(work.folder, ignore_errors=True)
