"""events.jsonl: what happened to a run, and when; a line each, of all its attempts. No torch.

{"time": 1764450000.0, "event": "save", "step": 1000, "seconds": 0.8, "bytes": 22085632}

Events: start, resume, save, skip, spike, rollback, out_of_memory, straggler, stop, done, fail.
Nobody resumes by them: a line that cannot be written is left out. inspect/run_record.py reads them.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from nanogpt_dist.storage.appending import append_lines
from nanogpt_dist.storage.run_folder import to_json

EVENTS = "events.jsonl"


def note_event(run: Path, event: str, step: int, **more: Any) -> None:
    """Append an event of the run folder `run`; never raises for the disk's sake."""
    line = to_json({"time": round(time.time(), 3), "event": event, "step": step, **more})
    with contextlib.suppress(OSError):
        append_lines(run / EVENTS, [line])
