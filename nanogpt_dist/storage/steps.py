"""The checkpoints of a run: folders checkpoints/step-00001000, ordered by step, not by time.

    step-00001000          sealed: see sealed.py
    latest                 the newest name, for people and scripts; this program does not trust it
    pins                   names that are never pruned, one a line
    .tmp-… .trash-…        of attempts that died; sweep() removes them
    .bad-step-00001000-1   set aside as damaged, and kept

Every other name is the user's, and is neither read nor touched. What changes the folder needs the
run lock.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nanogpt_dist.errors import BadDataError, StorageError, clipped
from nanogpt_dist.storage.durable import (
    fsync_folder,
    open_plain,
    remove,
    shown,
    staging_name,
    storage_errors,
    write_atomic,
)
from nanogpt_dist.storage.manifest import NewerFormatError
from nanogpt_dist.storage.sealed import set_aside, verify

# one spelling per number: no second zero-padded form
STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})")
# as durable.staging_name() makes them
LEFTOVER = re.compile(r"\.(tmp|trash)-[A-Za-z0-9._-]+-[0-9a-f]{8}")
LATEST = "latest"
PINS = "pins"


def step_name(step: int) -> str:
    """1000 → "step-00001000"."""
    assert step >= 0, step
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """ "step-00001000" → 1000; None for a name that step_name() does not give."""
    match = STEP.fullmatch(name)
    return int(match[1]) if match else None


def step_at(checkpoint: Path) -> int:
    """The step of one that list_steps() gives."""
    step = step_of(checkpoint.name)
    assert step is not None, checkpoint
    return step


def list_steps(checkpoints: Path) -> list[Path]:
    """The entries with a step's name, good or bad, highest step first; [] without the folder."""
    with storage_errors(checkpoints):
        names = os.listdir(checkpoints) if checkpoints.exists() else []
    by_step = {step: name for name in names if (step := step_of(name)) is not None}
    return [checkpoints / by_step[step] for step in sorted(by_step, reverse=True)]


def newest_good(
    checkpoints: Path,
    warn: Callable[[str], None],
    rename_bad: bool = True,
) -> Path | None:
    """The newest checkpoint of which every byte is as sealed; None if there is none at all.

    Newer bad ones get one line to `warn` each and are set aside; not with rename_bad=False, for a
    reader without the run lock.

    Raises: BadDataError if all are bad, or one is of a later format; StorageError if one cannot be
    read, which is no damage; then nothing was changed.
    """
    bad: list[tuple[Path, str]] = []
    steps = list_steps(checkpoints)
    for folder in steps:
        problems = verify(folder)
        if not problems:
            for other, reason in bad:
                warn(
                    f"{other.name} is damaged ({reason}){_put_away(other, rename_bad)}; using "
                    f"{folder.name}"
                )
            return folder
        if os.path.lexists(folder):  # else its run has pruned it meanwhile
            bad.append((folder, f"{problems[0][0][:40]} {problems[0][1]}"))
    if not bad:
        return newest_good(checkpoints, warn, rename_bad) if steps else None
    (first, reason), where = bad[0], shown(checkpoints)
    raise BadDataError(
        f"all {len(bad)} checkpoints in {where} are damaged ({first.name}: {clipped(reason, 45)}); "
        "restore a backup, or use --fresh in another folder"
    )


def _put_away(folder: Path, rename: bool) -> str:
    """Sets a bad checkpoint aside if it may, and says so in half a sentence."""
    if not rename:
        return ""
    try:
        return f", set aside as {set_aside(folder).name}"
    except OSError as error:
        return f", left in place ({error.strerror})"


def read_pins(checkpoints: Path) -> set[str]:
    """The names in `pins`; none without such a file."""
    try:
        with open_plain(checkpoints / PINS) as file:
            lines = file.read(1 << 20).decode(errors="replace").split()
    except OSError:
        return set()
    return {line for line in lines if step_of(line) is not None}


def write_pins(checkpoints: Path, pins: set[str]) -> None:
    """Replaces the names in `pins`. Raises: StorageError."""
    write_atomic(checkpoints / PINS, "".join(f"{name}\n" for name in sorted(pins)).encode())


def checkpoints_to_prune(
    checkpoints: Path, keep: int, also: set[str], every: int | None = None
) -> list[Path]:
    """The checkpoints that prune() deletes, newest first."""
    assert keep >= 1, keep
    whole = [folder for folder in list_steps(checkpoints) if _looks_whole(folder)]
    kept = also | read_pins(checkpoints) | {read_latest(checkpoints)}
    return [
        folder
        for folder in whole[keep:]
        if folder.name not in kept and not (every and step_at(folder) % every == 0)
    ]


def prune(checkpoints: Path, keep: int, also: set[str], every: int | None = None) -> list[str]:
    """Deletes all but the newest `keep`, those in `also`, the pinned, and multiples of `every`.

    Returns the names, newest first. One that looks damaged (manifest, names, sizes) or is of a
    later format neither counts nor goes: it must not push out a good one. Neither does the one that
    `latest` names: it is behind where the last attempt to write it failed.

    What an earlier call could not delete goes, too. Needs the run lock.

    Raises: StorageError; then each is there whole, or gone from its name.
    """
    going = checkpoints_to_prune(checkpoints, keep, also, every)
    with storage_errors(checkpoints):
        trash = [path for path in checkpoints.glob(".trash-*") if LEFTOVER.fullmatch(path.name)]
        for place in [*trash, *_renamed_to_trash(going)]:
            remove(place)
    return [folder.name for folder in going]


def _renamed_to_trash(going: list[Path]) -> list[Path]:
    """First the names, durably, then the files: a power cut leaves no half checkpoint.

    Raises: OSError; then all have their names again.
    """
    trash: list[Path] = []
    try:
        for folder in going:
            place = folder.with_name(staging_name(folder.name, "trash"))
            os.rename(folder, place)
            trash.append(place)
        if trash:
            fsync_folder(trash[0].parent)
    except OSError:
        with suppress(OSError):
            for folder, place in zip(going, trash, strict=False):
                os.rename(place, folder)
        raise
    return trash


def _looks_whole(folder: Path) -> bool:
    try:
        return not verify(folder, hashes=False)
    except (NewerFormatError, StorageError):
        return False


def sweep(folder: Path) -> list[str]:
    """Removes what dead attempts left in `folder` (.tmp-…, .trash-…) and returns the names.

    Call it only under the run lock: a living attempt's staging folder looks the same.

    Raises: StorageError.
    """
    with storage_errors(folder):
        names = sorted(filter(LEFTOVER.fullmatch, os.listdir(folder))) if folder.exists() else []
        for name in names:
            remove(folder / name)
    return names


def write_latest(checkpoints: Path, name: str) -> None:
    """Notes the newest checkpoint's name in the file `latest`. Raises: StorageError."""
    write_atomic(checkpoints / LATEST, f"{name}\n".encode())


def read_latest(checkpoints: Path) -> str | None:
    """The name in `latest`, a hint that may be out of date; None if missing or malformed."""
    try:
        with open_plain(checkpoints / LATEST) as file:
            name = file.read(100).decode().removesuffix("\n")
    except (OSError, ValueError):
        return None
    return name if step_of(name) is not None else None
