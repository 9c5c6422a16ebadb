"""Run folders as a training of this version leaves them, or an older one, without the training."""

import json
import math
from pathlib import Path
from typing import Any

from nanogpt_dist.config import resolve, to_run_toml

OLD = ("step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu")
BEGUN = 1_764_450_000.0


def write_run(
    folder: Path,
    steps: int = 200,
    every: int = 1,
    old: bool = False,
    events: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Path:
    """A run of `steps` steps of 1,024 tokens, logged each `every`, evaluated ten times.

    old: as before metrics.jsonl told of the time.
    """
    (folder / "checkpoints").mkdir(parents=True)
    shape = {"block_size": 128, "batch_size": 4, "gradient_accumulation_steps": 2}
    config = resolve({**shape, "max_iters": steps, **settings})
    (folder / "config.toml").write_text(to_run_toml(config))
    (folder / "run.json").write_text('{"host": "vm", "world_size": 2, "version": "0.1.0"}')
    (folder / "status.json").write_text(json.dumps({"verdict": "done", "step": steps}))
    lines = []
    for step in range(every, steps + 1, every):
        line = train_line(step, every)
        lines.append({key: line[key] for key in OLD} if old else line)
        if step % max(every, steps // 10) == 0:
            val = {"step": step, "val_loss": 2 + 8 / step**0.5, "tokens": 512, "bits_per_byte": 1.5}
            lines.append(val if old else {**val, "time": BEGUN + step})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, objects in (("events", events), ("samples", samples)):
        if objects is not None:
            text = "".join(f"{json.dumps(each)}\n" for each in objects)
            (folder / f"{name}.jsonl").write_text(text)
    return folder


def train_line(step: int, every: int) -> dict[str, Any]:
    """A logged step: 0.5 s each, of which a tenth waits for data."""
    wall = 0.5 * every
    return {
        "step": step,
        "tokens": 1024 * step,
        "loss": 2.2 + 8 / step**0.5 + 0.1 * math.sin(step),
        "learning_rate": 1e-3,
        "grad_norm": 1 + 0.5 * math.cos(step),
        "tokens_per_second": None if step == every else 1024 / 0.4,
        "mfu": 0.3,
        "memory_bytes": 4e9,
        "memory_reserved_bytes": 5e9,
        "time": BEGUN + wall * step / every,
        "interval_s": wall,
        "data_s": wall / 10,
        "communication_s": None,
        "save_s": wall / 20,
        "eval_s": 0.0,
    }
