"""How a setting is declared: once, with its type, default, bounds, help and what a resume does."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nanogpt_dist.errors import ConfigError

# Another name that flags and TOML files may give a setting; files are written with its own.
ALIASES = {"tie_embeddings": "tied_head"}
# Settings that take the word `auto`, and the switch that it turns on. The number below stays.
AUTO = {"batch_size": "auto_batch_size"}

PATH = r"^[^\x00-\x1f]+$"  # a path that can stand in a TOML file and in a message

OnResume = Literal["refuse", "refuse_global_batch", "note", "ignore"]
Scope = Literal["run", "machine", "report", "upkeep"]


class Settings(BaseModel):
    """Some settings of a run: nothing but these, of exactly these types, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def setting(
    default: Any,
    group: str,
    help: str,
    *,
    on_resume: OnResume | None = None,
    scope: Scope | None = None,
    metavar: str | None = None,
    **bounds: Any,
) -> Any:
    """A config field: its default, its group in --help, what it means with its unit, its bounds.

    metavar: the word for its value in --help; None: its type.

    Each setting of a run also declares on_resume and scope.

    on_resume, where a checkpoint has another value:
        refuse: it fixes the weights' shapes, or which tokens a step sees
        refuse_global_batch: it may change where global_batch_size does not
        note: the run goes on otherwise than it began, which is worth a line
        ignore: the run computes the same
    scope:
        run: the same on all ranks; after repeated crashes another value is worth another attempt
        machine: as run, but may differ between the ranks
        report: where a run reports; no part of what it computes
        upkeep: of no matter to a crash, as report, but runs are compared by it
    """
    declared = {"group": group, "on_resume": on_resume, "scope": scope, "metavar": metavar}
    extra: Any = {name: value for name, value in declared.items() if value is not None}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def by_own_names(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with each alias replaced by the setting's own name, and `auto` by its switch.

    Raises ConfigError where a setting stands under both names, with different values.
    """
    found = {name: value for name, value in values.items() if name not in ALIASES}
    for name, switch in AUTO.items():
        if found.get(name) == "auto":
            del found[name]
            found[switch] = True
    for alias in ALIASES.keys() & values.keys():
        name, value = ALIASES[alias], values[alias]
        if found.setdefault(name, value) != value:
            raise ConfigError(
                f"{alias} = {spelled(value)} and {name} = {spelled(found[name])} are the same "
                "setting: leave one of them out"
            )
    return found


def spelled(value: Any) -> str:
    """A value as Python writes it, for a message."""
    try:
        return repr(value)
    except ValueError:  # an int of more digits than Python writes
        return "a number of thousands of digits"
