"""Weights & Biases beside TensorBoard: the same scalars, by wandb's own client. Needs the extra `wandb`.

WANDB_MODE=offline writes them into the run folder, for `wandb sync` where there is a network.
"""

import secrets
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError

ID = "wandb_id"  # file in the run folder: what a resumed run is called at W&B
INIT_TIMEOUT_S = 60


class WandbBoard:
    """A run of W&B's that goes on when ours does. What fails is raised as wandb raises it: telling is best effort."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        wandb = import_wandb()
        name = config.wandb_run_name or run.name
        self._run = wandb.init(
            project=config.wandb_project,
            name=name,
            id=_identity(run),
            resume="allow",
            dir=str(run),
            config=config.model_dump(),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True),
        )
        # A resumed run makes some updates again: its own step is the axis, not wandb's, which only grows.
        self._run.define_metric("*", step_metric="step")

    def write(self, group: str, values: dict[str, Any], step: int) -> None:
        """Log scalars as GROUP/NAME at `step`."""
        self._run.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()


def import_wandb() -> Any:
    """The module wandb. Raises ConfigError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--wandb-log needs wandb ({error}): type pip install 'nanogpt-dist[wandb]'") from None
    return wandb


def _identity(run: Path) -> str:
    path = run / ID
    if not path.is_file():
        storage.write_atomic(path, secrets.token_hex(6).encode())
    return path.read_text().strip()
