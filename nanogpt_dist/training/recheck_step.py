"""One step of a run again, from the checkpoint before it, beside what was logged of it.

What a step computes is a function of its checkpoint, seed and data: on the same layout its loss and
its gradient's norm come to the same bits. Where they do not, memory, a GPU or the data has changed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import storage_errors
from nanogpt_dist.storage.json_lines import JsonLines, Line
from nanogpt_dist.training import spikes
from nanogpt_dist.training.build import build
from nanogpt_dist.training.metrics import RECORD, Console
from nanogpt_dist.training.plan import make_plan
from nanogpt_dist.training.resume import ResumePoint
from nanogpt_dist.training.roll_back import left_out
from nanogpt_dist.transfers import stager

ROUNDING = 1e-3  # relative: what other threads or kernels may make of the same step


@dataclass(frozen=True)
class Recheck:
    """A step made again: its figures, and those that were logged; losses in nats/token.

    since: the step from which it was made.
    """

    step: int
    since: int
    loss: float
    logged_loss: float
    grad_norm: float
    logged_grad_norm: float

    @property
    def exact(self) -> bool:
        """Whether both figures are the logged ones, to the last bit."""
        return (self.loss, self.grad_norm) == (self.logged_loss, self.logged_grad_norm)

    @property
    def difference(self) -> float:
        """The larger relative difference of the two figures; infinite where one is not finite."""
        pairs = ((self.loss, self.logged_loss), (self.grad_norm, self.logged_grad_norm))
        found = [abs(ours - logged) / max(abs(logged), 1e-30) for ours, logged in pairs]
        return max(found) if all(map(math.isfinite, found)) else math.inf


def recheck_step(config: TrainConfig, step: int, world: World) -> Recheck:
    """Make step number `step` of the run in config.out_dir again; nothing is written.

    Raises, on all ranks, UsageError where it was not logged, MissingInputError where there is no
    good checkpoint from before, BadDataError where it comes to other figures.
    """
    assert config.out_dir is not None
    run, console = Path(config.out_dir), Console(world.is_rank0)
    plan = make_plan(config, world)
    start: ResumePoint | None = None
    with world.with_long_timeout.raise_on_all_ranks():
        logged = _logged(run)
        if step not in logged:
            raise UsageError(f"step {step} of {run} was not logged: {_instead(run, step, logged)}")
        logged_loss, logged_norm = logged[step]
        if world.is_rank0:
            start = ResumePoint.read(_checkpoint_before(run, step, logged))
            start.refuse_another_run(plan.config, plan.data)
    name = world.broadcast_text(start.path.name if start else "")
    with world.with_long_timeout.raise_on_all_ranks():
        if start is None:
            storage.wait_for(run_folder.checkpoints_of(run) / name)
            start = ResumePoint.read(run_folder.checkpoints_of(run) / name)
    state, since = start.state, start.state.step
    state.left_out = left_out(run, world, state)
    console.line(f"making steps {since + 1:,} to {step:,} again, from {name}")
    train_step = build(plan, start, world, console)
    stage = stager(world.device)
    while state.step < step:
        if state.leaves_out_next:
            state.leave_out()
            continue
        with world.raise_on_all_ranks():
            micro_batches = stage(plan.batches.of(state.step))
        result = train_step.step(state.step, micro_batches, spikes.limits(state))
        loss, grad_norm, skipped = result.loss, result.grad_norm, result.skipped
        anew = config.ramp.begins_at(state.step)
        spikes.remember(state, loss, grad_norm, skipped=skipped, begins_anew=anew)
        state.count(config.ramp.at(state.step).tokens)
        state.skipped += skipped
    found = Recheck(step, since, loss, logged_loss, grad_norm, logged_norm)
    if found.difference > ROUNDING:
        error = BadDataError(
            f"step {step} comes to loss {found.loss:.6f}, norm {found.grad_norm:.4f} now; logged "
            f"are {logged_loss:.6f} and {logged_norm:.4f}: memory, a GPU or the data has changed; "
            "try it on another machine"
        )
        error.agreed = True
        raise error
    return found


def _logged(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and norm of each step in metrics.jsonl."""
    with storage_errors(run / RECORD):
        lines = JsonLines(run / RECORD).read()
    return {
        line["step"]: (line["loss"], float(line.get("grad_norm") or math.nan))
        for line in lines
        if _tells_of_a_step(line)
    }


def _tells_of_a_step(line: Line) -> bool:
    return type(line.get("step")) is int and isinstance(line.get("loss"), float)


def _checkpoint_before(run: Path, step: int, logged: Iterable[int]) -> Path:
    """The newest good checkpoint of a step below `step`."""
    for path in _checkpoints(run):
        if storage.step_at(path) < step and not storage.verify(path):
            return path
    advice = _instead(run, step, logged)
    raise MissingInputError(f"no good checkpoint of {run} is from before step {step}: {advice}")


def _instead(run: Path, step: int, logged: Iterable[int]) -> str:
    """What to type: the nearest step that was logged after a good checkpoint."""
    oldest = next((path for path in reversed(_checkpoints(run)) if not storage.verify(path)), None)
    if oldest is None:
        return "the run has no good checkpoint"
    after = [each for each in logged if each > storage.step_at(oldest)]
    if not after:
        return f"nothing is logged yet after {oldest.name}, its first one"
    return f"type --recheck-step {min(after, key=lambda each: abs(each - step))}"


def _checkpoints(run: Path) -> list[Path]:
    return storage.list_steps(run_folder.checkpoints_of(run))
