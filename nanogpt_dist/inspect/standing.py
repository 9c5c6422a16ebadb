"""Where a run stands now, in figures: what `nanogpt watch` shows of its record. No torch."""

import statistics
from typing import Any

from nanogpt_dist.inspect.run_record import Line, RunRecord

RECENT = 10  # logged steps, of which rates and shares are taken
EVENTS = 5  # the newest ones
ENDED = ("done", "stopped", "failed", "killed")
LAST = (
    *("loss", "learning_rate", "grad_norm", "mfu", "memory_bytes", "memory_reserved_bytes"),
    *("gpu_temperature_c", "gpu_clock_mhz", "slowest_rank", "slowest_host", "slowest_factor"),
)


def standing(record: RunRecord, now: float) -> dict[str, Any]:
    """The figures of one run, None where the folder does not tell; now: Unix seconds."""
    steps, losses = record.series("val_loss")
    saved = next(iter(record.events_of("save")[::-1]), None)
    speed = _speed(record)
    newest = record.train[-1] if record.train else {}
    return {
        "run": str(record.folder),
        "verdict": record.verdict,
        "code": record.status.get("code"),
        "message": record.status.get("message") or record.problem,
        "step": record.step,
        "max_iters": record.max_iters,
        "tokens": record.tokens,
        **{key: newest.get(key) for key in LAST},
        "val_loss": float(losses[-1]) if len(losses) else None,
        "best_val_loss": float(losses.min()) if len(losses) else None,
        "best_step": int(steps[losses.argmin()]) if len(losses) else None,
        "tokens_per_second": speed,
        "eta_s": _eta(record, speed),
        "shares": _shares(record),
        "ranks": record.about.get("world_size"),
        "host": record.about.get("host"),
        "checkpoint": record.checkpoints[0].name if record.checkpoints else None,
        "checkpoint_age_s": max(0.0, now - saved["time"]) if saved else None,
        "straggler": _straggler(record),
        "events": list(record.events[-EVENTS:]),
    }


def _recent(record: RunRecord) -> list[Line]:
    """The last logged steps, all of this attempt."""
    began = max((event["step"] for event in record.events_of("start", "resume")), default=0)
    return [line for line in record.train[-RECENT:] if line["step"] > began]


def _speed(record: RunRecord) -> float | None:
    """Tokens per second over all ranks: the median of the last logged steps."""
    found = [line["tokens_per_second"] for line in _recent(record) if line.get("tokens_per_second")]
    return statistics.median(found) if found else None


def _eta(record: RunRecord, speed: float | None) -> float | None:
    """Seconds to the last step at this speed, of a run that goes on."""
    if record.verdict != "running" or record.config is None or not speed:
        return None
    before = record.config.ramp.tokens_before
    return (before(record.config.max_iters) - before(record.step)) / speed


def _shares(record: RunRecord) -> dict[str, float] | None:
    """What the last logged steps' time went to, as shares of it; compute is what remains."""
    lines = [line for line in _recent(record) if line.get("interval_s")]
    seconds = sum(line["interval_s"] for line in lines)
    if not seconds:
        return None
    keys = {"data": "data_s", "communication": "communication_s", "save": "save_s"}
    keys["eval"] = "eval_s"
    found = {
        name: sum(line.get(key) or 0.0 for line in lines) / seconds for name, key in keys.items()
    }
    return {"compute": max(0.0, 1 - sum(found.values())), **found}


def _straggler(record: RunRecord) -> Line | None:
    """The last rank that was told of in this attempt."""
    found = record.events_of("start", "resume", "straggler")
    return found[-1] if found and found[-1]["event"] == "straggler" else None
