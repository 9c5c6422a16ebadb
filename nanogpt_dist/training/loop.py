"""The training run in the order of time: plan, resume, build; then step · log · evaluate · save."""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data.batches import Prefetcher
from nanogpt_dist.data.documents import documents_of_step
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError, StoppedError, StorageError
from nanogpt_dist.evaluation.loss import Evaluator
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.build import build
from nanogpt_dist.training.disk_room import check_room
from nanogpt_dist.training.groups import lower_rates
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun, open_run
from nanogpt_dist.training.out_of_memory import OutOfMemory
from nanogpt_dist.training.pending import DocumentsOf, PendingResults
from nanogpt_dist.training.plan import Plan, make_plan
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.resume import (
    find_start,
    forget_lost_best,
    forget_other_best,
    make_ready,
)
from nanogpt_dist.training.roll_back import RollBack, left_out, roll_back
from nanogpt_dist.training.samples import Sampler, make_sampler
from nanogpt_dist.training.saver import Saver, due
from nanogpt_dist.training.spikes import limits
from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.training.summary import Summary
from nanogpt_dist.training.telemetry import Telemetry
from nanogpt_dist.transfers import Staged, stager

# tokens per second of a training in a layout, on rank 0; None: nobody knows
Expect = Callable[[TrainConfig, Layout, World], float | None]
STOPPING = "note: stopping as soon as this step is saved; Ctrl-C again within 5 s leaves at once"


@dataclass(frozen=True)
class Result:
    """What a run reports at its end; losses in nats/token."""

    step: int
    tokens: int
    val_loss: float | None
    best_val_loss: float | None
    tokens_per_second: float | None
    checkpoint: str
    verdict: str  # done, or stopped on request


@dataclass(frozen=True)
class Run:
    """The parts of a run that is going on; of these only `state` and what it counts change."""

    config: TrainConfig
    folder: OpenRun
    state: TrainState
    prefetcher: Prefetcher[Staged]
    train_step: TrainStep
    evaluator: Evaluator
    sampler: Sampler | None
    saver: Saver
    progress: Progress
    stop: StopRequest
    documents_of: DocumentsOf

    @property
    def world(self) -> World:
        """Its ranks."""
        return self.folder.world


def train(
    config: TrainConfig,
    world: World,
    stop: StopRequest,
    fresh: bool = False,
    branch_from: Path | None = None,
    expect: Expect | None = None,
) -> Result:
    """Train from the newest good checkpoint of config.out_dir to max_iters, or until `stop`.

    fresh: start at step 0; refused where there are checkpoints. branch_from: another run's
    checkpoint, with which a run begins that has none yet. expect: says how fast it should be.
    Everything is saved when it returns. Raises NanogptError, the same on all ranks.
    """
    console = Console(world.is_rank0)
    if world.size > 1:
        # a rank that left by itself would take the others for lost
        stop.defer(STOPPING if world.is_rank0 else "")
    result = None
    while result is None:
        result = _attempt(config, world, stop, fresh, branch_from, expect, console)
        fresh = False  # rolled back: the checkpoints that are there are this run's own
    return result


def _attempt(
    config: TrainConfig,
    world: World,
    stop: StopRequest,
    fresh: bool,
    branch_from: Path | None,
    expect: Expect | None,
    console: Console,
) -> Result | None:
    """train(), until it is done, stopped, or rolled back: then None."""
    plan = make_plan(config, world)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_run(plan.config, world))
        make_ready(folder, branch_from, plan.config)
        check_room(folder, plan.config, plan.layout, console)
        start = find_start(folder, plan, fresh, console)
        state = start.state if start else TrainState()
        if not fresh:
            state.left_out = left_out(folder.path, world, state)
        forget_lost_best(folder, state)
        if start and state.step >= config.max_iters:
            console.line(
                f"{folder.path} is finished: {state.step} steps made, {config.max_iters} asked for "
                "by --max-iters"
            )
            return _finish(folder, console, _result(state, config, start.path, None))
        if plan.why is not None:
            console.line(plan.why)
        memory = OutOfMemory(plan.config, plan.layout, world, console, state, stop)
        stack.enter_context(memory.remembered(folder))
        with memory.explained():
            train_step = build(plan, start, world, console)
        saver = Saver(folder, train_step, plan.data, console, start.path if start else None)
        best = state.best_step
        if start and (note := forget_other_best(start, state, plan.evaluator)):
            console.line(f"note: {note}")
            saver.keep(best)  # not lost for that
        summary = Summary(folder.path, train_step, plan.batches, start.path if start else None)
        expected = expect(plan.config, plan.layout, world) if expect and world.is_rank0 else None
        return _run(plan, summary, saver, state, stop, memory, expected)


def _run(
    plan: Plan,
    summary: Summary,
    saver: Saver,
    state: TrainState,
    stop: StopRequest,
    memory: OutOfMemory,
    expected: float | None,
) -> Result | None:
    """Watch, log and prefetch while loop() goes on; None: it is to go on from a checkpoint."""
    config, folder, console = plan.config, saver.run, saver.console
    world, train_step = folder.world, summary.train_step
    with contextlib.ExitStack() as stack:
        stack.enter_context(world.watchdog.over(folder.path, stop.ask))
        stack.enter_context(folder.noting_failure())
        telemetry = Telemetry(train_step)
        with world.raise_on_all_ranks():
            progress = Progress(folder.path, train_step, state, console, telemetry, expected)
        stack.enter_context(contextlib.closing(progress))
        summary.show(console)
        if world.any(bool(stop)):
            raise StoppedError(stop.message)
        with world.raise_on_all_ranks():
            dtype = plan.layout.autocast_dtype(plan.dtype)
            sampler = make_sampler(config, plan.data, world, dtype)
        reading = contextlib.closing(Prefetcher(plan.batches, stager(world.device)))
        prefetcher = stack.enter_context(reading)
        stack.enter_context(saver.ending())
        # once more: what is closed on the way out may wait for the device
        stack.enter_context(folder.noting_failure())
        stack.enter_context(memory.explained())
        run = Run(
            config=config,
            folder=folder,
            state=state,
            prefetcher=prefetcher,
            train_step=train_step,
            evaluator=plan.evaluator,
            sampler=sampler,
            saver=saver,
            progress=progress,
            stop=stop,
            documents_of=functools.partial(documents_of_step, plan.data, plan.batches),
        )
        try:
            last = loop(run)
        except RollBack as spike:
            roll_back(spike, folder, state, saver)
            return None
    return _finish(folder, console, _result(state, config, last, progress.tokens_per_second))


def loop(run: Run) -> Path:
    """Step from state.step to max_iters, or to where a rank is asked to stop; the last checkpoint.

    Each step: read, train, log, evaluate, save, vote. The last one is evaluated and saved. What
    depends on the result of a step waits for it; the next step does not. The last samples are drawn
    when all is saved.
    """
    config, state, saver, telemetry = run.config, run.state, run.saver, run.progress.telemetry
    max_skipped = run.train_step.max_skipped
    results = PendingResults(state, run.progress, saver, max_skipped, run.documents_of)
    save_pending = False  # a save is due, and waits for a good step
    evaluated = has_evaluated = stopping = False
    start, slow = state.step, run.train_step.starts_slowly
    run.stop.defer(STOPPING if run.world.is_rank0 else "")
    while state.step < config.max_iters and not stopping:
        if state.leaves_out_next:
            state.leave_out()
        else:
            piece = config.ramp.at(state.step)
            # other shapes are compiled for themselves
            run.world.settle(not slow or state.step > max(start, piece.first) + 1)
            with run.world.raise_on_all_ranks():  # a damaged shard is found here
                with telemetry.spending("data"):
                    micro_batches = run.prefetcher.get(state.step)
                run.folder.refuse_moved()
            run.world.watchdog.beat(state.step)
            result = run.train_step.step(state.step, micro_batches, limits(state))
            state.count(piece.tokens)
            results.add(result)

        is_last = state.step == config.max_iters
        evaluated = is_last or state.step % config.eval_interval == 0
        if evaluated:
            results.read_all()
            run.world.settle(not slow or has_evaluated)
            has_evaluated = True
        improved = _evaluate(run) if evaluated else False
        if not is_last and run.sampler is not None and run.sampler.is_due(state.step):
            results.read_all()
            _sample(run, run.sampler)
        save_pending = save_pending or due(config, state.step, evaluated, improved)
        if save_pending:
            results.read_all()
        if save_pending and not results.skipped and not is_last:
            with telemetry.spending("save"):
                saver.save(state, evaluated)
            save_pending = False
        if saver.replicas.is_due(state.step):
            results.read_all()
            saver.compare_replicas(state)
        stopping, writing = run.progress.vote(state.step, bool(run.stop), not saver.ended)
        if not writing:
            saver.finish(state)
        if results.all_read:
            run.progress.restart_clock()
    results.read_all()
    saver.save(state, evaluated, required=True)
    assert saver.newest is not None
    if run.sampler is not None and state.step == config.max_iters:  # all is saved by now
        _sample(run, run.sampler)
    return saver.newest


def _sample(run: Run, sampler: Sampler) -> None:
    with run.progress.telemetry.spending("eval"):
        run.progress.log_samples(run.state, sampler(run.train_step.model))


def _evaluate(run: Run) -> bool:
    """Evaluate the weights as they are; whether they are better than every checkpoint.

    The averaged weights, where there are any, are evaluated beside them, and decide nothing.

    Raises ConfigError, on all ranks, where the val loss is not finite: such a checkpoint would bury
    the good ones.
    """
    state, saver = run.state, run.saver
    with run.progress.telemetry.spending("eval"):
        found = run.train_step.evaluate(run.evaluator)
        averaged = run.train_step.evaluate_average(run.evaluator)
    state.val_loss = found.val_loss
    improved = saver.improves(state)
    run.progress.log_evaluation(state, found, averaged)
    if math.isfinite(found.val_loss):
        return improved
    error = ConfigError(
        f"the val loss is {state.val_loss} at step {state.step}, nothing is saved; "
        f"{saver.last_good(state)}: {lower_rates(run.config)}"
    )
    error.agreed = True
    raise error


def _result(
    state: TrainState,
    config: TrainConfig,
    newest: Path,
    tokens_per_second: float | None,
) -> Result:
    return Result(
        step=state.step,
        tokens=state.tokens,
        val_loss=state.val_loss,
        best_val_loss=state.best_val_loss,
        tokens_per_second=tokens_per_second,
        checkpoint=str(newest),
        verdict="done" if state.step >= config.max_iters else "stopped",
    )


def _finish(folder: OpenRun, console: Console, result: Result) -> Result:
    """Note `result` in the run folder, where rank 0 can; returns it."""
    if folder.world.is_rank0:
        try:
            folder.note_end(result.verdict, result.step, Path(result.checkpoint).name)
        except StorageError as error:  # all is saved
            console.line(f"warning: {error}")
    return result
