"""--on-spike rollback: back to an earlier checkpoint, and on without the steps before a spike.

run.json says which steps are left out, and so does every later checkpoint: what a step reads stays
a function of (seed, data, step), and a resumed run, or one on other ranks, leaves out the same.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import TrainState, as_left_out
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, ConfigError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.decay import set_aside_after
from nanogpt_dist.training.groups import lower_rates
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.saver import Saver

STEPS = 10  # that are left out, the spike's being the last: what led to it came shortly before
MAX_TIMES = 3  # back to one checkpoint
LEFT_OUT = "steps_left_out"  # in run.json: first and last step of each stretch
DIGEST = "steps_left_out_sha256"  # beside it: a digit that has changed would change the data

Stretches = tuple[tuple[int, int], ...]


class RollBack(Exception):
    """Ends an attempt, on all ranks, where step number `step` was a spike."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step} was a spike")
        self.step = step


def left_out(run: Path, world: World, state: TrainState) -> Stretches:
    """The stretches of steps that run.json or the checkpoint leave out, the same on all ranks.

    Raises, on all of them, BadDataError, StorageError.
    """
    told = ""
    with world.raise_on_all_ranks():
        if world.is_rank0:
            told = json.dumps(sorted({*state.left_out, *_in_run_json(run / "run.json")}))
    return as_left_out(json.loads(world.broadcast_text(told)))


def for_run_json(stretches: Stretches) -> dict[str, Any]:
    """What run.json is to remember of them."""
    return {LEFT_OUT: stretches, DIGEST: _digest(stretches)} if stretches else {}


def _in_run_json(path: Path) -> Stretches:
    content = run_folder.read_json(path)
    told = content.get(LEFT_OUT, [])
    try:
        stretches = as_left_out(told)
    except (TypeError, ValueError):
        stretches = ()
    if told and content.get(DIGEST) != _digest(stretches):
        raise BadDataError(
            f"{LEFT_OUT} in {path} is not as this program wrote it; take it out: the run spikes, "
            "and rolls back, again"
        )
    return stretches


def _digest(stretches: Stretches) -> str:
    return hashlib.sha256(json.dumps(stretches).encode()).hexdigest()


def roll_back(spike: RollBack, run: OpenRun, state: TrainState, saver: Saver) -> None:
    """Have the next attempt go on from before the last STEPS steps, and leave them out.

    From the newest checkpoint of then, or else the oldest one; newer ones are set aside: what is
    left out does not depend on when the run was saved. Raises, on all ranks, ConfigError where that
    has been of no use, StorageError.
    """
    saver.finish(state)
    with run.world.raise_on_all_ranks():
        if not run.world.is_rank0:
            return
        run.refuse_moved()
        target = _target(run, spike.step - STEPS)
        begin = storage.step_at(target) if target is not None else 0
        if sum(first > begin for first, _ in state.left_out) >= MAX_TIMES:
            raise ConfigError(
                f"step {spike.step} is a spike again, {MAX_TIMES} times back at step {begin}: "
                f"{lower_rates(saver.config)}"
            )
        first = max(begin, spike.step - STEPS) + 1
        # killed after it, the run spikes again and comes back here
        aside = set_aside_after(target, "rolled-back") if target is not None else []
        before = run_folder.read_json(run.path / "run.json")
        stretches = tuple(sorted({*state.left_out, (first, spike.step)}))
        run_folder.write_json(run.path / "run.json", {**before, **for_run_json(stretches)})
        crash_loops.ended(run.path, "rolled back")
        note_event(run.path, "rollback", spike.step, to=begin, first=first, last=spike.step)
        saver.console.line(
            f"rolling back to step {begin:,}, and on without steps {first:,} to {spike.step:,}"
            + (f"; kept as {', '.join(reversed(aside))}" if aside else "")
        )


def _target(run: OpenRun, most: int) -> Path | None:
    """The newest checkpoint of step `most` or before, the oldest where all are newer, or None."""
    steps = storage.list_steps(run.checkpoints)
    before = [path for path in steps if storage.step_at(path) <= most]
    return before[0] if before else steps[-1] if steps else None
