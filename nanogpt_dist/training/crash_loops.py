"""Crash loops: stop after repeated crashes without a new checkpoint. No torch.

RUN/attempts.jsonl has a line for each start, {"newest": step of the newest checkpoint, "from": step
it starts from, "settings": digest}, and one for each orderly end, {"ended": verdict}. After three
starts in a row that found the same newest checkpoint, had the same settings, and came to no orderly
end, the next goes one checkpoint back, as this one may be at fault; after that one the run is
stopped.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanogpt_dist.config import TrainConfig, settings_where, to_toml
from nanogpt_dist.errors import ConfigError, clipped
from nanogpt_dist.storage.appending import append_lines
from nanogpt_dist.storage.durable import read_small, storage_errors
from nanogpt_dist.storage.shallow_json import parse_json

ATTEMPTS = "attempts.jsonl"
IN_VAIN = 3  # attempts without a new checkpoint, before the run goes back


def digest(config: TrainConfig, ranks: int) -> str:
    """Of all settings that may have to do with a crash."""
    names = [*settings_where(scope="report"), *settings_where(scope="upkeep")]
    kept = config.model_copy(
        update={name: TrainConfig.model_fields[name].default for name in names}
    )
    return hashlib.sha256(f"{ranks} {to_toml(kept)}".encode()).hexdigest()[:16]


def steps_back(run: Path, newest: int, settings: str) -> int:
    """How many checkpoints to go back from the newest: 0 or 1.

    newest: its step; 0: there is none.

    settings: digest(). Raises ConfigError where the run has died in vain after that, too.
    """
    in_vain = starts_in_vain(run, newest, settings)
    if in_vain > IN_VAIN:
        raise ConfigError(
            f"{in_vain} attempts in a row ended without a checkpoint after step "
            f"{newest}{_last_words(run)}; change a setting, or rm {run / ATTEMPTS} to try again"
        )
    return int(in_vain == IN_VAIN and newest > 0)


def starts_in_vain(run: Path, newest: int, settings: str) -> int:
    """How many starts in a row, the last one included, have left no checkpoint after `newest`."""
    in_vain = 0
    for attempt in reversed(_read(run)):
        if attempt.get("newest") != newest or attempt.get("settings") != settings:
            break
        in_vain += 1
    return in_vain


def begun(run: Path, newest: int, start: int, settings: str) -> None:
    """Note a start from step `start`, where `newest` was there. Raises StorageError."""
    _append(run, {"newest": newest, "from": start, "settings": settings})


def ended(run: Path, verdict: str) -> None:
    """Note an orderly end: what went before it does not count any more. Raises StorageError."""
    _append(run, {"ended": verdict})


def _append(run: Path, entry: dict[str, Any]) -> None:
    path = run / ATTEMPTS
    with storage_errors(path):
        append_lines(path, [json.dumps(entry)], sync=True)


def _read(run: Path) -> list[dict[str, Any]]:
    """All entries that can be read: a torn one counts as an unknown attempt, which ends the row."""
    try:
        lines = read_small(run / ATTEMPTS).splitlines()
    except OSError:
        return []
    return [_parse(line) for line in lines if line]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _last_words(run: Path) -> str:
    try:
        message = str(parse_json(read_small(run / "status.json")).get("message", ""))
    except (OSError, ValueError, AttributeError):
        return ""
    return f" (the last: {clipped(message, 60)})" if message else ""
