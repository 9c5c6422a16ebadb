"""A finding: ok, warning or error, what was seen, and what to type."""

from dataclasses import dataclass
from typing import Literal

from nanogpt_dist.errors import WARNINGS, Exit

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What was looked at and how it stands.

    name: of the thing, the same each time: `disk`, `losses`. text: what was seen, with figures.
    todo: what to type, or to do; empty where all is well. code: what a script gets for an error.
    """

    name: str
    level: Level
    text: str
    todo: str = ""
    code: Exit = Exit.CONFIG


def as_notes(checks: list[Check]) -> list[Check]:
    """What was seen, where nothing is left to mend."""
    return [Check(check.name, "ok", check.text) for check in checks]


def exit_code(checks: list[Check]) -> int:
    """0 where all is well, 1 with warnings, the first error's own code with an error."""
    for check in checks:
        if check.level == "error":
            return int(check.code)
    return WARNINGS if any(check.level == "warning" for check in checks) else int(Exit.DONE)
