"""`nanogpt checkpoint …`: what a run has saved, and what is to stay of it."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completing
from cli.help import command, group
from cli.options import Json, warn
from cli.terminal import echo
from nanogpt_dist import storage
from nanogpt_dist.errors import BadDataError, MissingInputError, StorageError, UsageError, clipped
from nanogpt_dist.storage import run_checkpoints, run_folder

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", autocompletion=completing.runs, help="A run folder, e.g. out/gpt2-124m."
    ),
]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        autocompletion=completing.runs,
        help="A run folder, or one checkpoint in it.",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        autocompletion=completing.runs,
        help="E.g. out/NAME/checkpoints/step-00001000.",
    ),
]

checkpoint_app = group(
    "nanogpt checkpoint list out/gpt2-124m",
    "nanogpt checkpoint prune out/gpt2-124m --keep 3 --dry-run",
)


@command(
    checkpoint_app,
    "list",
    "nanogpt checkpoint list out/gpt2-124m",
    "nanogpt checkpoint list out/gpt2-124m --json",
)
def list_checkpoints(run: Run, as_json: Json = False) -> None:
    """The checkpoints of a run, newest first.

    Looks at names and sizes; `verify` reads every byte.
    """
    found = [_describe(folder, _marks(run)) for folder in _checkpoints(run)]
    verdict = run_folder.verdict_of(run)
    if as_json:
        echo(run_folder.to_json({"run": str(run), "verdict": verdict, "checkpoints": found}))
        return
    for one in found:
        loss = "–" if one["val_loss"] is None else f"{one['val_loss']:.4f}"
        state = ", ".join(
            [*one["marks"], *([f"damaged: {one['damage']}"] if one["damage"] else [])]
        )
        how = f"{one['layout'] or 'unknown layout'} on {one['world_size'] or '?'}"
        echo(
            f"{one['name']}  {one['bytes'] / 1e6:10,.1f} MB  val loss {loss:>7}  {how}  "
            f"{state}".rstrip()
        )
    if verdict in ("running", "killed"):
        resume = (
            f"; resume: {shlex.join(['nanogpt', 'train', str(run)])}" if verdict == "killed" else ""
        )
        echo(f"{run}: {verdict}{resume}", err=True)


@command(
    checkpoint_app,
    "verify",
    "nanogpt checkpoint verify out/gpt2-124m",
    "nanogpt checkpoint verify out/gpt2-124m/checkpoints/step-00001000",
)
def verify(target: Target, as_json: Json = False) -> None:
    """Check every byte of a run's checkpoints, or of one. Returns 65 where anything is bad."""
    folders = [target] if _is_checkpoint(target) else _checkpoints(target)
    bad, files = [], 0
    for folder in folders:
        found = storage.verify(folder)
        bad += [(f"{folder.name}/{name}", reason) for name, reason in found]
        files += sum(not storage.is_debris(path.name) for path in folder.iterdir())
    if as_json:
        listed = [{"file": name, "reason": reason} for name, reason in bad]
        echo(json.dumps({"ok": not bad, "files": files, "bad": listed}))
    else:
        echo(
            "\n".join(f"bad  {name}: {reason}" for name, reason in bad)
            or f"{target}: all {files} files are good"
        )
    if bad:
        name, reason = bad[0]
        raise BadDataError(
            f"{len(bad)} bad of {files} files: {name[-50:]}: {clipped(reason, 70)}; use another "
            "checkpoint"
        )


@command(
    checkpoint_app,
    "prune",
    "nanogpt checkpoint prune out/gpt2-124m --keep 3 --dry-run",
    "nanogpt checkpoint prune out/gpt2-124m --keep 1 --keep-every 10000",
)
def prune(
    run: Run,
    keep: Annotated[int, typer.Option(min=1, help="Newest checkpoints to keep.")] = 2,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep those at multiples of this many steps.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete old checkpoints, but for the newest, the best and the pinned.

    Those that a run's --keep-every promised to keep stay, too.

    Refuses while the run is training.
    """
    folder = run_folder.checkpoints_of(run)
    _checkpoints(run)
    with storage.RunLock(run):
        also = {name for name, marks in _marks(run).items() if {"best", "kept"} & set(marks)}
        going = storage.checkpoints_to_prune(folder, keep, also, keep_every)
        freed = sum(_size(path) for path in going)
        names = [path.name for path in going]
        if not dry_run:
            storage.prune(folder, keep, also, keep_every)
    if as_json:
        echo(json.dumps({"deleted": names, "bytes": freed, "dry_run": dry_run}))
    else:
        echo(
            f"{'would delete' if dry_run else 'deleted'} {len(names)}, {freed / 1e6:,.1f} MB: "
            f"{', '.join(names)}"
        )


@command(
    checkpoint_app,
    "pin",
    "nanogpt checkpoint pin out/gpt2-124m/checkpoints/step-00001000",
    "nanogpt checkpoint pin out/quickstart/checkpoints/step-00000500",
)
def pin(checkpoint: Checkpoint) -> None:
    """Keep a checkpoint for good: neither training nor prune deletes it."""
    parent, name = _parent(checkpoint)
    storage.require_good(checkpoint)
    storage.write_pins(parent, storage.read_pins(parent) | {name})


@command(
    checkpoint_app,
    "unpin",
    "nanogpt checkpoint unpin out/gpt2-124m/checkpoints/step-00001000",
    "nanogpt checkpoint unpin out/quickstart/checkpoints/step-00000500",
)
def unpin(checkpoint: Checkpoint) -> None:
    """Let a pinned checkpoint go as the others do."""
    parent, name = _parent(checkpoint)
    pins = storage.read_pins(parent)
    if name not in pins:
        raise MissingInputError(
            f"{name} is not pinned; see: nanogpt checkpoint list {shlex.quote(str(parent.parent))}"
        )
    storage.write_pins(parent, pins - {name})


@command(
    checkpoint_app,
    "consolidate",
    "nanogpt checkpoint consolidate out/gpt2-124m",
    "nanogpt checkpoint consolidate out/gpt2-124m/checkpoints/step-00001000 --out whole/gpt2-124m",
)
def consolidate(
    target: Target,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder; unset: RUN/consolidated/step-….")
    ] = None,
) -> None:
    """Write a sharded checkpoint once more, with whole tensors.

    One file holds the weights, one the moments.
    """
    from nanogpt_dist.checkpoint.consolidate import consolidate, is_sharded

    def write_whole(found: Path) -> Path:
        if not is_sharded(found):
            raise UsageError(f"{found} has whole tensors already: use it as it is")
        name = run_folder.canonical_path(found).name
        return consolidate(found, out or run_folder.run_of(found) / "consolidated" / name)

    echo(str(run_checkpoints.read_checkpoint(str(target), write_whole, warn=warn)))


def _is_checkpoint(path: Path) -> bool:
    return storage.step_of(run_folder.canonical_path(path).name) is not None


def _parent(checkpoint: Path) -> tuple[Path, str]:
    """The folder in which a checkpoint stands, and its name.

    Raises: MissingInputError for whatever is none.
    """
    if _is_checkpoint(checkpoint) and checkpoint.is_dir():
        return run_folder.canonical_path(checkpoint).parent, run_folder.canonical_path(
            checkpoint
        ).name
    steps = storage.list_steps(run_folder.checkpoints_of(checkpoint)) if checkpoint.is_dir() else []
    if steps:
        raise MissingInputError(
            f"{checkpoint} is a run; give one checkpoint of it, like {steps[0]}"
        )
    raise MissingInputError(
        f"{checkpoint} is no checkpoint; give one like out/NAME/checkpoints/step-00001000"
    )


def _checkpoints(run: Path) -> list[Path]:
    found = storage.list_steps(run_folder.checkpoints_of(run)) if run.is_dir() else []
    if not found:
        raise MissingInputError(f"{run} holds no checkpoint; name a run folder, like out/NAME")
    return found


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())


def _state(folder: Path) -> dict[str, Any]:
    try:
        return run_folder.read_json(folder / "state.json")
    except (BadDataError, StorageError):
        return {}


def _marks(run: Path) -> dict[str, list[str]]:
    """{checkpoint name: best, kept, pinned, latest}, by the newest state that can be read."""
    folder = run_folder.checkpoints_of(run)
    marks: dict[str, list[str]] = {}
    steps = [_state(path).get("best_step") for path in storage.list_steps(folder)]
    best = next((step for step in steps if type(step) is int and step >= 0), None)
    if best is not None:
        marks.setdefault(storage.step_name(best), []).append("best")
    for name in sorted(run_checkpoints.kept_by_keep_every(folder)):
        marks.setdefault(name, []).append("kept")
    for name in sorted(storage.read_pins(folder)):
        marks.setdefault(name, []).append("pinned")
    if latest := storage.read_latest(folder):
        marks.setdefault(latest, []).append("latest")
    return marks


def _describe(folder: Path, marks: dict[str, list[str]]) -> dict[str, Any]:
    state = _state(folder)
    try:
        damage = " ".join(next(iter(storage.verify(folder, hashes=False)), ()))
    except StorageError as error:
        damage = str(error)
    return {
        "name": folder.name,
        "step": storage.step_of(folder.name),
        "bytes": _size(folder),
        "val_loss": state.get("val_loss") if isinstance(state.get("val_loss"), float) else None,
        "layout": str(state["layout"]) if "layout" in state else None,
        "world_size": state.get("world_size"),
        "marks": marks.get(folder.name, []),
        "damage": damage or None,
    }
