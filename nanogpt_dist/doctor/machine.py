"""What is looked at: a machine's variables, files and folders, and what torchrun says to it."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What is looked at.

    environment: variables of this process; folder: where runs are written, or will be; root: below
    which /proc, /sys and /dev lie; port_holder: who listens on a TCP port of this machine, None:
    nobody; now: seconds since 1970.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path = Path("out")
    root: Path = Path("/")
    port_holder: Callable[[int], str | None] = lambda port: None
    now: Callable[[], float] = time.time

    def read(self, path: str) -> str:
        """A file of the system's, without the blanks around it; empty where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """An environment variable as a number; None where it is none."""
        value = self.environment.get(name, "").strip()
        return int(value) if re.fullmatch("[0-9]{1,9}", value) else None

    @property
    def rank(self) -> int:
        """This process's rank, 0 without torchrun, whatever is left over in RANK."""
        return int(self.environment["RANK"]) if is_rank(self.environment) else 0

    @property
    def local_ranks(self) -> int:
        """Ranks on this machine, 1 without torchrun."""
        return self.number("LOCAL_WORLD_SIZE") or 1 if is_rank(self.environment) else 1

    @property
    def nodes(self) -> int:
        """Machines of this job, as torchrun, Kubeflow or Slurm say."""
        said = [self.number(name) for name in ("GROUP_WORLD_SIZE", "PET_NNODES", "SLURM_NNODES")]
        return max([number for number in said if number], default=1)


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, or a job step of Slurm's by hand, has started this process as a rank.

    RANK alone may be left over from another shell.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return False
    if not all(re.fullmatch("[0-9]{1,9}", environment[name]) for name in ("RANK", "WORLD_SIZE")):
        return False
    return (
        "TORCHELASTIC_RUN_ID" in environment
        or environment.get("SLURM_PROCID") == environment["RANK"]
    )
