"""The run folder out/NAME: its paths, and the JSON files in it. No torch.

config.toml   run.json   status.json   metrics.jsonl   tensorboard/   run.lock
checkpoints/step-00001000/
"""

import json
import math
import os
import platform
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanogpt_dist import __version__, storage
from nanogpt_dist.errors import BadDataError, clipped
from nanogpt_dist.storage.durable import read_small, shown, storage_errors
from nanogpt_dist.storage.shallow_json import parse_json

CONFIG = "config.toml"
SAMPLES = "samples.jsonl"  # prompts continued while it trains: {"step", "time", "prompt", "text"}
OUT = Path("out")  # where runs lie by default


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def canonical_path(checkpoint: Path) -> Path:
    """`checkpoint` as RUN/checkpoints/step-…: its step's name at the end, its run above.

    Links are followed only where they must be: a run's folder of checkpoints may be one, to another
    disk.
    """
    direct = storage.step_of(checkpoint.name) is not None and ".." not in checkpoint.parts
    return checkpoint if direct and len(checkpoint.parents) > 2 else checkpoint.resolve()


def run_of(checkpoint: Path) -> Path:
    """The run folder in which `checkpoint` stands."""
    return canonical_path(checkpoint).parents[1]


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint, by its name or, after a rename, by its files."""
    if not folder.is_dir():
        return False
    has_step_name = any(
        storage.step_of(path.name) is not None for path in (folder, folder.resolve())
    )
    return has_step_name or (
        (folder / "state.json").is_file() and (folder / "manifest.json").is_file()
    )


def has_begun(folder: Path) -> bool:
    """Whether a run has written in `folder`: a config.toml alone may be anybody's."""
    return any(
        (folder / mark).exists()
        for mark in ("run.json", "status.json", storage.LOCK, "checkpoints")
    )


def as_run(name: str) -> Path | None:
    """The run folder that `name` means, or None: a folder with a config.toml, or that file.

    The file counts only where a run has begun. The run is its own out_dir, whatever a copied
    config.toml says.
    """
    path = Path(name)
    folder = path.parent if path.name == CONFIG else path
    if (
        not (folder / CONFIG).is_file()
        or is_checkpoint(folder)
        or (path.name == CONFIG and not has_begun(folder))
    ):
        return None
    return folder if folder.name not in ("", "..") else folder.resolve()


def dataset_of(run: Path, dataset: str) -> str:
    """`dataset` of a run's settings, as a path from here.

    A relative path starts where the run was started, mostly a folder above the run: `nanogpt train
    ../project/out/a`.
    """
    if os.path.exists(dataset):
        return dataset
    return next(
        (str(above / dataset) for above in run.resolve().parents if (above / dataset).is_dir()),
        dataset,
    )


def as_checkpoint(name: str) -> Path | None:
    """The checkpoint that `name` means, or None: its folder, or the config.toml in it."""
    path = Path(name)
    folder = path.parent if path.name == CONFIG else path
    return folder if is_checkpoint(folder) else None


def to_json(content: dict[str, Any], indent: int | None = None) -> str:
    """`content` as strict JSON: a number that JSON does not have (NaN, infinity) becomes null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path` by `content`, whole or not at all."""
    storage.write_atomic(path, (to_json(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} where there is no file. Raises: BadDataError, StorageError."""
    try:
        with storage_errors(path):
            text = read_small(path) if path.exists() else b"{}"
        content = parse_json(text)
    except ValueError as error:
        why = clipped(str(error), 60)
        raise BadDataError(f"{shown(path)} cannot be read: {why}; {_instead(path)}") from None
    if not isinstance(content, dict):
        raise BadDataError(f"{shown(path)} holds no JSON object; {_instead(path)}")
    return content


def _instead(path: Path) -> str:
    """What to do about a file that cannot be read; some a run does without."""
    spare = path.name in ("run.json", "status.json") or path.name.endswith(".eval.json")
    return "remove it" if spare else "restore a copy of it"


def write_run_json(run: Path, world_size: int, threads: int, **more: Any) -> None:
    """Writes run.json: where, when and how this attempt was started."""
    write_json(
        run / "run.json",
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "python": platform.python_version(),
            "world_size": world_size,
            "threads_per_rank": threads,
            **more,
        },
    )


@dataclass(frozen=True)
class Status:
    """How a run stands, as status.json says it.

    verdict: running | done | stopped | failed. checkpoint: the newest one's name. code: the exit
    code. message: the error line.
    """

    verdict: str
    step: int
    checkpoint: str | None
    code: int = 0
    message: str = ""


KINDS: dict[str, tuple[type, ...]] = {  # of the fields of a Status
    "verdict": (str,),
    "step": (int,),
    "checkpoint": (str, type(None)),
    "code": (int,),
    "message": (str,),
}


def write_status(run: Path, status: Status) -> None:
    """Writes status.json."""
    write_json(
        run / "status.json",
        {
            "verdict": status.verdict,
            "code": status.code,
            "step": status.step,
            "message": status.message,
            "checkpoint": status.checkpoint,
        },
    )


def read_status(run: Path) -> dict[str, Any]:
    """What status.json says, {} where there is none. Raises: BadDataError, StorageError."""
    path = run / "status.json"
    content = read_json(path)
    if not all(type(content[name]) in KINDS[name] for name in KINDS.keys() & content.keys()):
        raise BadDataError(f"{shown(path)} is not as this program wrote it; {_instead(path)}")
    return content


def verdict_of(run: Path) -> str | None:
    """The state of `run`: running | done | stopped | failed | killed; None if status.json lacks it.

    killed: status.json says running, but no living process holds the run's lock.
    """
    try:
        said: str | None = read_status(run).get("verdict")
    except BadDataError:
        return None
    if said == "running" and not storage.is_held(run / storage.LOCK):
        return "killed"
    return said
