"""The training run in the order of time: open the data, find where to go on, build; update · log ·
evaluate · save.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt_dist import __version__, checkpoint, storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Batches, Ids, Order, Prefetcher, micro_batch_size
from nanogpt_dist.devices import pick_dtype
from nanogpt_dist.distributed.memory import check_memory
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError, Exit, NanogptError, StoppedError, StorageError
from nanogpt_dist.evaluation.loss import Evaluator, spread
from nanogpt_dist.load_config import rows_for
from nanogpt_dist.model import kernels
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.progress import Progress
from nanogpt_dist.training.resume import (
    forget_lost_best,
    forget_other_best,
    noting_failure,
    open_run,
    resume_point,
)
from nanogpt_dist.training.saver import Saver, due
from nanogpt_dist.training.step import StepResult, TrainStep
from nanogpt_dist.training.summary import Summary


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


def train(
    config: TrainConfig,
    world: World,
    stop: StopRequest,
    fresh: bool = False,
    branch_from: Path | None = None,
) -> Result:
    """Make max_iters updates, or fewer if `stop` is asked for, from the newest good checkpoint of
    config.out_dir on.

    fresh: go on from nothing; refused where there are checkpoints. branch_from: another run's
    checkpoint, with which a run begins that has none yet. Everything is saved when it returns.
    Raises NanogptError, the same on all ranks.
    """
    console = Console(world.is_rank0)
    if world.size > 1:
        stop.defer()  # a rank that left by itself would take the others for lost
    with world.raise_on_all_ranks():
        data = DataFolder.open(Path(config.dataset))
        config = fit_to_data(config, data)
        dtype = pick_dtype(config.dtype, world.device)
        layout = plan_layout(config, world, training_bytes(config))
        joined = kernels.uses_cpu_kernels(config, world.device, dtype)
        batches, evaluator = read_plan(config, data, world, layout.autocast_dtype(dtype), joined)
    world.raise_if_ranks_differ(
        version=__version__,
        torch=torch.__version__,
        dataset=data.dataset_id,
        **_shared_settings(config),
    )
    with open_run(config, world) as (run, refuse_moved):
        start = resume_point(run, config, data, fresh, world, console, branch_from)
        state, facts = checkpoint.load_state(start) if start else (TrainState(), {})
        forget_lost_best(run, state, world)
        if start and state.step >= config.max_iters:
            console.line(
                f"{run} is finished: {state.step} updates made, {config.max_iters} asked for by "
                "--max-iters"
            )
            return _finish(config, run, state, start, None, world, console)
        with world.raise_on_all_ranks():
            hardly = check_memory(config, layout.shard, world, training_bytes(config))
        if hardly:
            console.line(f"warning: {hardly}")
        init = start is None and config.init_from is None
        train_step = TrainStep(config, world, layout, dtype, init, data.tokenizer.n_vocab)
        if start:
            with world.raise_on_all_ranks():
                train_step.load(start, facts)
            began_from = facts.get("began_from") or facts.get("imported_from") or config.init_from
        else:
            began_from = config.init_from and begin_from(
                config.init_from, train_step, data, world, console
            )
        saver = Saver(
            run,
            config,
            world,
            data,
            console,
            newest=start,
            refuse_moved=refuse_moved,
            began_from=began_from,
        )
        before = state.best_step
        if (
            start
            and before is not None
            and (other := forget_other_best(start, state, config, evaluator))
        ):
            console.line(f"note: {other}")
            saver.resumed_from.add(storage.step_name(before))  # not lost for that
        with contextlib.ExitStack() as stack:
            stack.enter_context(world.watchdog.over(run, config.timeout_s, stop.ask))
            stack.enter_context(noting_failure(run, world, refuse_moved))
            with world.raise_on_all_ranks():
                progress = Progress(run, config, world, train_step, state, console)
            stack.enter_context(contextlib.closing(progress))
            # over several nodes, whose network may be slow
            speed = world.all_reduce_speed() if world.size > world.local_size else None
            for line in Summary(run, train_step, batches, start, speed).lines():
                console.line(line)
            if world.any(bool(stop)):
                raise StoppedError(stop.message)
            prefetcher = stack.enter_context(contextlib.closing(Prefetcher(batches)))
            stack.enter_context(saver.ending())
            last = loop(
                config, world, state, prefetcher, train_step, evaluator, saver, progress, stop
            )
        return _finish(config, run, state, last, progress.tokens_per_second, world, console)


def loop(
    config: TrainConfig,
    world: World,
    state: TrainState,
    prefetcher: Prefetcher,
    train_step: TrainStep,
    evaluator: Evaluator,
    saver: Saver,
    progress: Progress,
    stop: StopRequest,
) -> Path:
    """From state.step to max_iters, or to where a rank is asked to stop; returns the checkpoint of
    the last step.
    """
    # updates left out in a row; whether a save waits for the next good one
    skipped, owed = 0, False
    stop.defer()
    while state.step < config.max_iters:
        with world.raise_on_all_ranks():  # a damaged shard is found here
            tokens = prefetcher.of(state.step)
            saver.refuse_moved()
        world.watchdog.beat(state.step)
        update = train_step.update(state.step, tokens)
        skipped = 0 if update.finite else skipped + 1
        state.step += 1
        state.tokens += config.global_batch_size * config.block_size
        state.skipped += not update.finite
        progress.updated(state, update)
        if skipped:
            _judge_skipped(skipped, train_step.max_skipped, state, update, progress)

        last = state.step == config.max_iters
        evaluated = last or state.step % config.eval_interval == 0
        improved, state.val_loss = False, None  # a checkpoint between evaluations has no val loss
        if evaluated:
            found = train_step.evaluate(evaluator)
            state.val_loss = found.val_loss
            improved = saver.improves(state)
            progress.evaluated(state, found)
            _refuse_not_finite(state, saver)
        owed = owed or due(config, state.step, evaluated, improved)
        if last or (owed and not skipped):
            saver.save(state, train_step, evaluated, required=last)
            owed = False
        stopping, writing = world.any_of_each(bool(stop), not saver.ended)
        if not writing:
            saver.finish(state)
        if not last and stopping:
            saver.save(state, train_step, evaluated, required=True)
            break
        progress.restart_clock()
    assert saver.newest is not None
    return saver.newest


def _refuse_not_finite(state: TrainState, saver: Saver) -> None:
    """Raises ConfigError, on all ranks, where the val loss is none: a checkpoint of that would bury
    the good ones.
    """
    if state.val_loss is None or math.isfinite(state.val_loss):
        return
    saver.finish(state)  # a commit under way may tell it of an earlier step
    good = (
        f"the last good checkpoint is {saver.newest.name}"
        if saver.newest
        else "there is no checkpoint yet"
    )
    error = ConfigError(
        f"the val loss is {state.val_loss} at step {state.step}, nothing is saved; {good}: go on "
        f"with a --learning-rate below {saver.config.learning_rate:g}"
    )
    error.agreed = True
    raise error


def begin_from(
    name: str,
    train_step: TrainStep,
    data: DataFolder,
    world: World,
    console: Console,
) -> str:
    """Give the model its first weights, fetched by one rank of each machine; returns whose they
    are.

    Raises as init_from.find_pretrained() and load().
    """
    from nanogpt_dist.interop import hf_tokenizer, huggingface, init_from

    found = world.local_rank0_first(lambda: init_from.find_pretrained(name))
    with world.raise_on_all_ranks():
        huggingface.load_weights(found, train_step.model)
        try:
            same = hf_tokenizer.load_tokenizer(found).fingerprint == data.tokenizer.fingerprint
        except NanogptError:
            same = True  # nothing is known
    console.line(f"weights of {name}")
    if not same:
        console.line(
            f"warning: the weights of {name} were trained on other ids than {data.tokenizer.name}'s"
        )
    return found.origin


def fit_to_data(config: TrainConfig, data: DataFolder) -> TrainConfig:
    """`config` with vocab_size and eot_id filled in from the data.

    Raises ConfigError where the data has ids beyond vocab_size, or no end of text where the model
    needs it.
    """
    n_vocab, eot_id = data.tokenizer.n_vocab, data.tokenizer.eot_id
    if config.intra_document and config.eot_id is None:
        if eot_id is None:
            raise ConfigError(f"{data.path} has no end-of-text token: leave --intra-document out")
        config = config.model_copy(update={"eot_id": eot_id})
    if config.vocab_size is None:
        return config.model_copy(update={"vocab_size": rows_for(data.tokenizer)})
    if config.vocab_size < n_vocab:
        raise ConfigError(
            f"vocab_size {config.vocab_size} is less than the {n_vocab} ids of {data.path}; leave "
            f"it out, or type --vocab-size {n_vocab}"
        )
    return config


def _shared_settings(config: TrainConfig) -> dict[str, str]:
    """The settings that all ranks must have the same, as text."""
    differing = set(settings_where(scope="machine"))
    return {name: str(value) for name, value in config.model_dump(exclude=differing).items()}


def read_plan(
    config: TrainConfig,
    data: DataFolder,
    world: World,
    dtype: torch.dtype,
    joined: bool = False,
) -> tuple[Batches, Evaluator]:
    """What this rank reads: the batches of every update, and the windows of every evaluation (in
    `dtype`).

    joined: micro-batches may be larger than config.batch_size.
    """
    val = data.split("val")
    batches = plan_batches(config, data.split("train"), data.dataset_id, world, joined)
    windows = spread(val.tokens, config.block_size, config.eval_iters * config.batch_size)
    return batches, Evaluator(
        val, windows, data.tokenizer.byte_lengths(), world, config.batch_size, dtype
    )


def plan_batches(
    config: TrainConfig,
    split: Ids,
    dataset_id: str,
    world: World,
    joined: bool = False,
) -> Batches:
    """What this rank reads of `split` in each update. Raises ConfigError, BadDataError."""
    order = Order(config.seed, dataset_id, config.block_size, split.tokens)
    at_most = kernels.joined_batch_size(config, world.local_size) if joined else config.batch_size
    batch_size = micro_batch_size(at_most, config.global_batch_size, world.size)
    return Batches(split, order, config.global_batch_size, batch_size, world.rank, world.size)


def _judge_skipped(
    skipped: int,
    at_most: int,
    state: TrainState,
    update: StepResult,
    progress: Progress,
) -> None:
    progress.console.line(
        f"warning: update {state.step} left out, its gradient's norm is {update.grad_norm} (loss "
        f"{update.loss:.4f})"
    )
    if skipped >= at_most:
        error = ConfigError(
            f"no finite gradient in {skipped} updates up to step {state.step}; go on from the last "
            f"checkpoint with a --learning-rate below {progress.config.learning_rate:g}"
        )
        error.agreed = True  # all ranks have seen the same norms
        raise error


def _finish(
    config: TrainConfig,
    run: Path,
    state: TrainState,
    newest: Path,
    tokens_per_second: float | None,
    world: World,
    console: Console,
) -> Result:
    done = state.step >= config.max_iters
    verdict, code = ("done", Exit.DONE) if done else ("stopped", Exit.STOPPED)
    if world.is_rank0:
        try:
            run_folder.write_status(run, run_folder.Status(verdict, state.step, newest.name, code))
            crash_loops.ended(run, verdict)
        except StorageError as error:  # all is saved
            console.line(f"warning: {error}")
    return Result(
        step=state.step,
        tokens=state.tokens,
        val_loss=state.val_loss,
        best_val_loss=state.best_val_loss,
        tokens_per_second=tokens_per_second,
        checkpoint=str(newest),
        verdict=verdict,
    )
