"""Find a run's checkpoint: the newest good one, the best one, or another run's to branch from.

No torch.
"""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nanogpt_dist import storage
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    MissingInputError,
    NanogptError,
    StorageError,
    UsageError,
)
from nanogpt_dist.storage.durable import read_small
from nanogpt_dist.storage.manifest import file_problem
from nanogpt_dist.storage.run_folder import (
    CONFIG,
    OUT,
    checkpoints_of,
    is_checkpoint,
    read_json,
    read_status,
)
from nanogpt_dist.toml import parse_toml

Read = TypeVar("Read")


def kept_by_keep_every(checkpoints: Path) -> set[str]:
    """The names of checkpoints that --keep-every, by their own config.toml, promised to keep."""
    kept = set()
    for folder in storage.list_steps(checkpoints):
        try:
            every = parse_toml(read_small(folder / CONFIG).decode()).get("keep_every")
        except (
            *(FileNotFoundError, NotADirectoryError, ValueError, RecursionError),
            BadDataError,
        ):  # damaged
            continue
        except OSError:  # cannot be read now: it may have been promised
            kept.add(folder.name)
            continue
        if isinstance(every, int) and every > 0 and storage.step_at(folder) % every == 0:
            kept.add(folder.name)
    return kept


def good_before(checkpoint: Path) -> Path:
    """The newest good one of a run before `checkpoint`; itself where there is none."""
    steps, last = storage.list_steps(checkpoint.parent), storage.step_at(checkpoint)
    older = [path for path in steps if storage.step_at(path) < last]
    return next((path for path in older if not storage.verify(path)), checkpoint)


def checkpoint_to_resume(run: Path, fresh: bool, warn: Callable[[str], None]) -> Path | None:
    """The newest good checkpoint to resume from, None to start at step 0.

    Starting over is never chosen for the user.

    Raises: CannotCreateError for `fresh` in a folder that has checkpoints; MissingInputError where
    status.json names a checkpoint but none is left.
    """
    checkpoints = checkpoints_of(run)
    steps = storage.list_steps(checkpoints)
    if fresh:
        if steps:
            raise CannotCreateError(
                f"{run} holds a run at {steps[0].name}; --fresh needs another --out-dir, or rm -r "
                f"{run}"
            )
        return None
    if not steps and (lost := read_status(run).get("checkpoint")):
        raise MissingInputError(
            f"{run} has lost its checkpoint {lost}; restore it, or start over with --fresh"
        )
    return storage.newest_good(checkpoints, warn) if steps else None


def is_new(run: Path) -> bool:
    """Whether `run` has had no checkpoint yet."""
    had = read_status(run).get("checkpoint")
    return not had and not storage.list_steps(checkpoints_of(run))


def copy_to_run(checkpoint: Path, run: Path) -> None:
    """Copies `checkpoint` into `run`, to continue from it; the copies are checked.

    Raises: BadDataError, StorageError.
    """
    manifest = storage.read_manifest(checkpoint)
    hashes = {entry["name"]: entry["sha256"] for entry in manifest["files"]}

    def fill(staging: Path) -> None:
        for entry in manifest["files"]:
            copy = staging / entry["name"]
            shutil.copyfile(checkpoint / entry["name"], copy)
            if problem := file_problem(copy, entry, hashes=True):
                raise StorageError(
                    f"the copy of {checkpoint / entry['name']} {problem}; type the same again, or "
                    "check the disk"
                )

    step = step_of_any(checkpoint)
    storage.commit(checkpoints_of(run), storage.step_name(step), fill, {"step": step}, hashes)


def step_of_any(checkpoint: Path) -> int:
    """The step of a checkpoint, whatever it was renamed to. Raises: BadDataError."""
    step = storage.step_of(checkpoint.resolve().name)
    step = read_json(checkpoint / "state.json").get("step") if step is None else step
    if not isinstance(step, int) or step < 0:
        raise BadDataError(
            f"{checkpoint} does not say its step; name it step-00001000, after its step"
        )
    return step


def find_checkpoint(
    target: str | None,
    best: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> Path:
    """The verified checkpoint that a user names: a run, a checkpoint, or nothing.

    A run stands for its newest good checkpoint, or with `best` for the one of the lowest val loss.
    Nothing stands for the newest run under out/.

    Raises: MissingInputError, BadDataError, UsageError.
    """
    path = Path(target) if target else newest_run(OUT)
    path = path.parent if path.name == CONFIG and path.is_file() else path
    if not path.is_dir():
        raise MissingInputError(
            f"{path} does not exist or is no folder; give a run (out/NAME) or a checkpoint in it"
        )
    if is_checkpoint(path):
        if best:
            raise UsageError(
                f"--best chooses among a run's checkpoints, and {path} is one: leave it out"
            )
        storage.require_good(path)
        return path
    # RUN/checkpoints stands for RUN
    folder = path if storage.list_steps(path) else checkpoints_of(path)
    newest = storage.newest_good(folder, warn, rename_bad=False)  # we do not hold the run's lock
    if newest is None:
        if (path / "config.json").is_file():
            made = shlex.join(
                ["nanogpt", "import", "hf", str(path), "--out-dir", f"out/{path.resolve().name}"]
            )
            raise MissingInputError(
                f"{path} is a folder of Hugging Face's, no run; type --init-from, or {made}"
            )
        raise MissingInputError(
            f"{path} holds no checkpoint; give a run (out/NAME) that has one, or a checkpoint"
        )
    if not best:
        return newest
    step = read_json(newest / "state.json").get("best_step")
    if type(step) is not int or step < 0:
        raise MissingInputError(
            f"no evaluation of {path} was saved with a checkpoint: leave --best out"
        )
    chosen = folder / storage.step_name(step)
    storage.require_good(chosen)
    return chosen


def read_checkpoint(
    target: str | None,
    read: Callable[[Path], Read],
    best: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> Read:
    """What `read` makes of find_checkpoint(); of the next one where a run has pruned it meanwhile.

    Raises: as find_checkpoint() and `read`.
    """
    while True:
        found = find_checkpoint(target, best, warn)
        try:
            return read(found)
        except NanogptError:
            if found.exists():
                raise


def newest_run(out: Path) -> Path:
    """The run under `out` that was started last and has a checkpoint. Raises: MissingInputError."""
    runs = [run for run in out.glob("*/") if storage.list_steps(checkpoints_of(run))]
    if not runs:
        raise MissingInputError(
            f"no run with a checkpoint under {out}/; type: nanogpt quickstart, or name a run"
        )
    return max(runs, key=lambda run: str(read_json(run / "run.json").get("started", "")))
