"""Where a run stands now, in figures: what `nanogpt watch` shows of its record. No torch."""

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

from nanogpt_dist.inspect.run_record import RunRecord, is_number, number
from nanogpt_dist.storage.json_lines import Line
from nanogpt_dist.training.stragglers import SLOWER, WINDOWS

RECENT = 10  # logged steps, of which rates and shares are taken
EVENTS = 5  # the newest ones
ENDED = ("done", "stopped", "failed", "killed")
LAST = (
    *("loss", "learning_rate", "grad_norm", "mfu", "memory_bytes", "memory_reserved_bytes"),
    *("gpu_temperature_c", "gpu_clock_mhz", "slowest_rank", "slowest_factor"),
    "expected_tokens_per_second",
)
SPENT = {"data": "data_s", "communication": "communication_s", "save": "save_s", "eval": "eval_s"}


def standing(record: RunRecord, now: float) -> dict[str, Any]:
    """The figures of one run, None where the folder does not tell; now: Unix seconds."""
    steps, losses = record.series("val_loss")
    saved = next(iter(record.events_of("save")[::-1]), None)
    speed = _speed(record)
    newest = record.train[-1] if record.train else {}
    return {
        "run": str(record.folder),
        "verdict": record.verdict,
        "code": number(record.status, "code"),
        "message": _message(record),
        "step": record.step,
        "max_iters": record.max_iters,
        "tokens": record.tokens,
        **{key: number(newest, key) for key in LAST},
        "slowest_host": _text(newest, "slowest_host"),
        "val_loss": float(losses[-1]) if len(losses) else None,
        "best_val_loss": float(losses.min()) if len(losses) else None,
        "best_step": int(steps[losses.argmin()]) if len(losses) else None,
        "tokens_per_second": speed,
        "eta_s": _eta(record, speed),
        "shares": _shares(record),
        "ranks": number(record.about, "world_size"),
        "host": _text(record.about, "host"),
        "checkpoint": record.checkpoints[0].name if record.checkpoints else None,
        "checkpoint_age_s": max(0.0, now - saved["time"]) if saved else None,
        "straggler": _straggler(record),
        "events": list(record.events[-EVENTS:]),
    }


def _recent(record: RunRecord) -> list[Line]:
    """The last logged steps, all of this attempt."""
    began = next((event["step"] for event in record.events_of("start", "resume")[::-1]), 0)
    return [line for line in record.train[-RECENT:] if line["step"] > began]


def _speed(record: RunRecord) -> float | None:
    """Tokens per second over all ranks: the median of the last logged steps."""
    found = [number(line, "tokens_per_second") for line in _recent(record)]
    return statistics.median(known) if (known := [each for each in found if each]) else None


def _eta(record: RunRecord, speed: float | None) -> float | None:
    """Seconds to the last step at this speed, of a run that goes on."""
    if record.verdict != "running" or record.config is None or not speed:
        return None
    before = record.config.ramp.tokens_before
    with contextlib.suppress(OverflowError):
        seconds = (before(record.config.max_iters) - before(record.step)) / speed
        return seconds if is_number(seconds) else None
    return None


def _shares(record: RunRecord) -> dict[str, float] | None:
    """What the last logged steps' time went to, as shares of it; compute is what remains."""
    if (spent := seconds_spent(_recent(record))) is None:
        return None
    seconds, parts = spent
    found = {name: part / seconds for name, part in parts.items()}
    return {"compute": max(0.0, 1 - sum(found.values())), **found}


def seconds_spent(lines: Sequence[Line]) -> tuple[float, dict[str, float]] | None:
    """Wall time of these logged steps, and of it that for each of SPENT; None: they do not tell."""
    timed = [line for line in lines if number(line, "interval_s")]
    seconds = sum(line["interval_s"] for line in timed)
    if not (is_number(seconds) and seconds > 0):
        return None
    parts = {
        name: float(sum(max(0.0, number(line, key) or 0.0) for line in timed))
        for name, key in SPENT.items()
    }
    return seconds, parts


def _straggler(record: RunRecord) -> Line | None:
    """The last rank that was told of in this attempt, while the newest lines still name it."""
    found = record.events_of("start", "resume", "straggler")
    if not found or found[-1]["event"] != "straggler":
        return None
    told = {**found[-1], "factor": number(found[-1], "factor")}
    factors = [
        (line.get("slowest_rank"), line["slowest_factor"])
        for line in _recent(record)
        if line["step"] >= told["step"] and is_number(line.get("slowest_factor"))
    ][-WINDOWS:]
    named = any(rank == told.get("rank") and factor > SLOWER for rank, factor in factors)
    return told if named or not factors else None


def _message(record: RunRecord) -> str:
    """What is to be told of it: its error line, why its settings cannot be read, its silence."""
    if record.is_silent:
        return (
            f"{_text(record.about, 'host')} writes nothing for long, and its lock is not seen here"
        )
    return _text(record.status, "message") or record.problem


def _text(line: Line, key: str) -> str | None:
    return value if isinstance(value := line.get(key), str) else None
