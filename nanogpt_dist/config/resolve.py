"""From values to a validated TrainConfig, and from TOML and to it."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nanogpt_dist.config.model_config import ModelConfig
from nanogpt_dist.config.setting import (
    ALIASES,
    AUTO,
    OnResume,
    Scope,
    by_own_names,
    spelled,
)
from nanogpt_dist.config.train_config import TrainConfig
from nanogpt_dist.errors import ConfigError, MissingInputError
from nanogpt_dist.toml import parse_toml

MOST_BYTES = 1 << 16  # of a file of settings, prompts included; a run has 2,000


def settings_where(
    model: type[ModelConfig] = TrainConfig, **declared: OnResume | Scope
) -> list[str]:
    """The settings of `model` that declare this, in order: settings_where(on_resume="note")."""
    extras: dict[str, Any] = {
        name: field.json_schema_extra for name, field in model.model_fields.items()
    }
    return [name for name, extra in extras.items() if declared.items() <= extra.items()]


def resolve(
    values: dict[str, Any],
    overrides: dict[str, Any] | None = None,
    name: str | None = None,
) -> TrainConfig:
    """A validated TrainConfig from a preset's or file's `values` with `overrides` on top.

    A number on top of an `auto` turns that off; `auto` on top of a number keeps it, for the global
    batch. name: of that preset or file. Raises ConfigError naming every wrong setting at once, an
    unknown one with the nearest name, and where it stands, if it is none of `overrides`.
    """
    mine, place = by_own_names(overrides or {}), f"{name}: " if name else ""
    for number, switch in AUTO.items():
        if number in mine:
            mine.setdefault(switch, False)
    try:
        return TrainConfig(**{**by_own_names(values), **mine})
    except ValidationError as error:
        wrong = [
            ("" if mine.keys() & problem["loc"] else place) + _explain(problem)
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(wrong)) from None


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if name and isinstance(problem["input"], dict):
        return f"settings stand at the top of the file, without a section [{name}]"
    if problem["type"] == "extra_forbidden":
        known = [*TrainConfig.model_fields, *ALIASES]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return f"unknown setting {name}" + (
            f", did you mean {near[0]}?" if near else "; `nanogpt train --help` lists them"
        )
    reason = problem["msg"].removeprefix("Value error, ")
    value = spelled(problem["input"])
    return f"{name} = {value}: {reason[0].lower()}{reason[1:]}" if name else reason


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by their own names. Raises MissingInputError, ConfigError."""
    if not path.is_file():  # a pipe would block, a device has no end
        raise MissingInputError(
            f"{path} does not exist or is not a file; type: nanogpt show config > FILE.toml"
        )
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} is longer than the {MOST_BYTES:,} bytes of any file of settings; name another "
            "file"
        )
    try:
        values = parse_toml(data.decode("utf-8-sig"))  # Notepad writes a byte order mark
        repr(values)  # raises for a number with more digits than Python shows
        return by_own_names(values)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def to_toml(config: BaseModel) -> str:
    """`config` as TOML that read_toml gives back; unset (None) settings are left out."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(exclude_none=True))


def to_run_toml(config: TrainConfig) -> str:
    """to_toml() without out_dir, which is the folder in which the file lies.

    Also once it was moved or copied.
    """
    return to_toml(config.model_copy(update={"out_dir": None}))
