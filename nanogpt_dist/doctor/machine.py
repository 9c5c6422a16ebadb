"""This machine, theme by theme: each look at it is ok, or says what to type."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_dist.doctor.check import Check, Level

Theme = Callable[["Machine"], Iterator[Check]]

ORDER: tuple[Level, ...] = ("ok", "warning", "error")  # of a report: the gravest stand last


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
        return int(value) if value.isdecimal() else None

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
    return (
        "TORCHELASTIC_RUN_ID" in environment
        or environment.get("SLURM_PROCID") == environment["RANK"]
    )


def check_machine(machine: Machine, measure: bool = True) -> list[Check]:
    """All that can be told of `machine`, in a quarter of a minute at most.

    measure: whether devices and disk are measured, too. Another process of the same machine may
    have done so.
    """
    from nanogpt_dist.doctor import (
        clock,
        cores,
        disk,
        gpus,
        hub_access,
        installation,
        limits,
        network,
        scheduler,
        variables,
    )

    # those that need no torch come first: it may be torch that cannot be imported
    themes: list[Theme] = [
        installation.check_installation,
        variables.check_variables,
        limits.check_limits,
        cores.check_cores,
        network.check_network,
        scheduler.check_scheduler,
        hub_access.check_hub,
        clock.check_clock,
    ]
    themes += [disk.check_disk] if measure else []
    themes += [gpus.check_torch, gpus.check_memory, gpus.check_devices]
    checks: list[Check] = []
    for theme in themes:
        if any(check.name == "torch" and check.level == "error" for check in checks):
            break
        checks += look(theme, machine)
    return in_order(checks)


def look(theme: Theme, machine: Machine) -> list[Check]:
    """What `theme` finds. One that fails itself is a finding, and hides no other."""
    checks: list[Check] = []
    try:
        checks.extend(theme(machine))
    except Exception as error:  # whatever a machine is like, the report is to come
        name = theme.__name__.removeprefix("check_").replace("_", " ")
        text = f"could not be looked at: {type(error).__name__}: {error}"
        checks.append(Check(name, "warning", text[:150], "nanogpt doctor --bundle"))
    return checks


def in_order(checks: list[Check]) -> list[Check]:
    """What is well first, errors last: they stand above the prompt, where they are seen."""
    return sorted(checks, key=lambda check: ORDER.index(check.level))
