"""This machine, theme by theme: each look at it is ok, or says what to type."""

from collections.abc import Callable, Iterator

from nanogpt_dist.doctor import (
    clock,
    cores,
    disk,
    gpus,
    hub_access,
    installation,
    limits,
    neighbours,
    network,
    scheduler,
    variables,
)
from nanogpt_dist.doctor.check import Check, Level
from nanogpt_dist.doctor.machine import Machine

Theme = Callable[[Machine], Iterator[Check]]

ORDER: tuple[Level, ...] = ("ok", "warning", "error")  # of a report: the gravest stand last


def check_machine(machine: Machine, measure: bool = True) -> list[Check]:
    """All that can be told of `machine`, in a quarter of a minute at most.

    measure: whether devices and disk are measured, too. Another process of the same machine may
    have done so.
    """
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
    themes += [neighbours.check_neighbours, disk.check_disk] if measure else []
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
