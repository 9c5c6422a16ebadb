"""Weights & Biases beside TensorBoard, by wandb's own client (extra `wandb`).

WANDB_MODE=offline writes them into the run folder, for `wandb sync` where there is a network.
"""

import secrets
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.storage.durable import printable

# file in the run folder: what a resumed run is called at W&B, and which folder that is
ID = "wandb_id"
INIT_TIMEOUT_S = 60


class WandbBoard:
    """A W&B run that is resumed when ours is.

    What fails is raised as wandb raises it: logging there is best effort.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        wandb = import_wandb()
        name = config.wandb_run_name or run.name
        identity, self.is_of_a_copy = _identity(run)
        self._run = wandb.init(
            project=config.wandb_project,
            name=name,
            id=identity,
            resume="allow",
            dir=str(run),
            config=config.model_dump(),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True),
        )
        # A resumed run makes some steps again: its own step is the axis, not wandb's, which only
        # grows.
        self._run.define_metric("*", step_metric="step")

    def write(self, group: str, values: dict[str, Any], step: int) -> None:
        """Log scalars as GROUP/NAME at `step`."""
        self._run.log(
            {"step": step, **{f"{group}/{name}": value for name, value in values.items()}}
        )

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()


def import_wandb() -> Any:
    """The module wandb. Raises ConfigError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"--wandb-log needs wandb ({error}): type pip install 'nanogpt-dist[wandb]'"
        ) from None
    return wandb


def _identity(run: Path) -> tuple[str, bool]:
    """The run's id at W&B, and whether it is new.

    A copy of another run is new; the other keeps its own.

    A run that was renamed is the same folder (inode) still; one that was moved to another disk
    looks like a copy.
    """
    path, inode, place = run / ID, str(run.stat().st_ino), printable(run.resolve())
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    name, was_inode, was_place = (*lines, "", "", "")[:3]
    renamed = inode == was_inode and not (Path(was_place) / ID).is_file()
    copied = bool(name and was_place) and place != was_place and not renamed
    if copied or not name:
        name = secrets.token_hex(6)
    if (inode, place) != (was_inode, was_place):
        storage.write_atomic(path, f"{name}\n{inode}\n{place}\n".encode())
    return name, copied
