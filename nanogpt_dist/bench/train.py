"""The speed of steps as `nanogpt train` makes them, on all ranks, and where their time goes."""

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanogpt_dist import storage
from nanogpt_dist.bench.clock import Phases, communication_ms, profiler, spread, write_trace
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Batches, Prefetcher
from nanogpt_dist.data.documents import document_starts
from nanogpt_dist.devices import (
    device_name,
    dtype_name,
    memory_bytes,
    pick_dtype,
    synchronize,
)
from nanogpt_dist.distributed.check_memory import smallest_room
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.evaluation.loss import Evaluator
from nanogpt_dist.evaluation.loss import spread as spread_windows
from nanogpt_dist.load_config import with_vocabulary
from nanogpt_dist.peaks import peak_tflops
from nanogpt_dist.training.build import memory_warning
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.plan import evaluated_at_once, fit_to_data, plan_batches
from nanogpt_dist.training.step import StepResult, TrainStep
from nanogpt_dist.transfers import Moment, Staged, stager

WARM_UP = 2  # steps that do not count: kernels are chosen, memory is got, the model is compiled
AT_LEAST = 3  # steps that do
WINDOWS = 1024  # of random ids
EVALUATED = 3  # batches of each rank, with the speed of an evaluation
TIMED_STEPS = 2  # further steps, with a clock at each phase
COMMUNICATION = "communication"  # goes on beside the other phases


@dataclass(frozen=True)
class Duration:
    """Measure `steps` steps, or as many as fit into `seconds`; AT_LEAST in any case."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class TrainSpeed:
    """tokens_per_second and mfu: of all ranks, by the median step.

    peak_tflops, memory_bytes: of one rank. phases: milliseconds of each in one of TIMED_STEPS more
    steps, which add up to that step; communication is under way beside forward and backward.
    evaluation_tokens_per_second: of all ranks, as a training evaluates, on random ids.
    first_step_seconds: in which the model is compiled. recompiled: graphs that torch.compile has
    made after the first steps. device_name: as torch has it. trace: its file; None: not asked for.
    """

    tokens_per_second: float
    ms_per_update: float
    ms_least: float
    ms_greatest: float
    updates: int
    mfu: float
    peak_tflops: float
    memory_bytes: int
    phases: dict[str, float]
    evaluation_tokens_per_second: float
    first_step_seconds: float
    recompiled: int
    parameters: int
    batch_tokens: int
    micro_batches: int
    batch_size: int
    dtype: str
    layout: str
    activation_checkpointing: str
    ranks: int
    threads: int
    device: str
    device_name: str
    trace: str | None


class RandomIds:
    """In place of a split: ids that are drawn once."""

    def __init__(self, tokens: int, n_vocab: int) -> None:
        self.tokens, self.n_vocab = tokens, n_vocab
        self._ids = np.random.default_rng(0).integers(n_vocab, size=tokens, dtype=np.uint32)

    def read(self, start: int, length: int) -> np.ndarray:
        """(length,) uint32."""
        return self._ids[start : start + length]


def bench_train(
    config: TrainConfig,
    world: World,
    data: DataFolder | None,
    duration: Duration,
    trace: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> TrainSpeed:
    """The speed of as many steps as `duration` allows; all ranks together.

    data: what to train on; None: random ids. trace: a folder for the trace of one more step.
    warn: is told where memory will hardly do.

    Raises ConfigError, BadDataError, CannotCreateError, StorageError.
    """
    if trace is not None:
        with world.raise_on_all_ranks():
            storage.probe_writable(trace)
    config = with_vocabulary(config) if data is None else fit_to_data(config, data)
    config = behind_ramps(config)
    dtype, layout = (
        pick_dtype(config.dtype, world.device),
        plan_layout(config, world, training_bytes(config), smallest_room(config, world)),
    )
    warning = memory_warning(config, layout, world)
    if warning and world.is_rank0:
        warn(warning)
    train_step = TrainStep(
        config, world, layout, dtype, n_vocab=None if data is None else data.tokenizer.n_vocab
    )
    batches = _batches(config, data, world, layout)
    with contextlib.closing(Prefetcher(batches, stager(world.device))) as prefetcher:
        begun = time.perf_counter()
        wait_for(train_step.step(0, prefetcher.get(0)))
        first_step_seconds = time.perf_counter() - begun
        took, recompiled = _time(train_step, prefetcher, duration)
        memory = memory_bytes(world.device)
        evaluation_speed = _evaluation_speed(train_step)
        phases, written = _time_phases(train_step, prefetcher, WARM_UP + len(took), trace)
    median, least, greatest = spread(took)
    batch_tokens = config.ramp.at(0).tokens
    speed, peak = batch_tokens / median * 1e3, peak_tflops(world.device, dtype)
    return TrainSpeed(
        tokens_per_second=speed,
        ms_per_update=median,
        ms_least=least,
        ms_greatest=greatest,
        updates=len(took),
        mfu=speed * train_step.model.flops_per_token() / (peak * 1e12 * world.size),
        peak_tflops=peak,
        memory_bytes=memory,
        phases=phases,
        evaluation_tokens_per_second=evaluation_speed,
        first_step_seconds=first_step_seconds,
        recompiled=recompiled,
        parameters=train_step.model.num_params(),
        batch_tokens=batch_tokens,
        micro_batches=batches.per_update,
        batch_size=batches.micro_batches(batches.pieces[0])[1],
        dtype=dtype_name(dtype, config.dtype),
        layout=str(layout),
        activation_checkpointing=layout.activation_checkpointing,
        ranks=world.size,
        threads=torch.get_num_threads(),
        device=world.device.type,
        device_name=device_name(world.device),
        trace=None if written is None else str(written),
    )


def behind_ramps(config: TrainConfig) -> TrainConfig:
    """`config` with all steps as a ramp's last piece has them, which most of a run is."""
    last = config.ramp.pieces[-1]
    batch_ramp = f"0:{last.sequences}" if config.batch_ramp else None
    return config.model_copy(update={"batch_ramp": batch_ramp, "context_ramp": None})


def _time(
    train_step: TrainStep,
    prefetcher: Prefetcher[Staged],
    duration: Duration,
) -> tuple[list[float], int]:
    """Seconds of each of the steps from WARM_UP on, on CUDA by its clock; graphs compiled in them.

    As in training a step is begun before the result of the one before it is read.
    """
    results = [train_step.step(step, prefetcher.get(step)) for step in range(1, WARM_UP)]
    wait_for(results[-1])
    graphs = _graphs()
    spans: list[tuple[Moment, Moment]] = []
    deadline = time.perf_counter() + duration.seconds
    while len(spans) < duration.steps and (
        len(spans) < AT_LEAST or not train_step.world.any(time.perf_counter() > deadline)
    ):
        step = WARM_UP + len(spans)
        start = Moment(train_step.world.device)
        results.append(train_step.step(step, prefetcher.get(step)))
        spans.append((start, results[-1].made))
        wait_for(results[-2])
    wait_for(results[-1])
    return [end - start for start, end in spans], _graphs() - graphs


def _graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else utils.counters["stats"]["unique_graphs"]


def wait_for(result: StepResult) -> None:
    """Return once the device has made the step."""
    assert result.loss is not None


def _time_phases(
    train_step: TrainStep,
    prefetcher: Prefetcher[Staged],
    step: int,
    trace: Path | None,
) -> tuple[dict[str, float], Path | None]:
    """Milliseconds of each phase of the steps from `step` on, and the file of the trace, if any."""
    world = train_step.world
    phases = train_step.timed = Phases(world.device)
    for at in range(step, step + TIMED_STEPS):
        with phases("step"):
            with phases("data"):
                tokens = prefetcher.get(at)
            train_step.step(at, tokens)
    each = phases.each(TIMED_STEPS)
    each["rest"] = each.pop("step") - sum(each.values())
    if world.size == 1 and trace is None:
        return each, None
    with profiler(world.device) as profile:
        wait_for(train_step.step(step + TIMED_STEPS, prefetcher.get(step + TIMED_STEPS)))
        synchronize(world.device)  # all kernels of the step are in the trace
    if world.size > 1:
        each[COMMUNICATION] = communication_ms(profile)
    if trace is None:
        return each, None
    with world.raise_on_all_ranks():
        written = write_trace(profile, trace, f"{platform.node()}-rank{world.rank}")
    return each, written


def _evaluation_speed(train_step: TrainStep) -> float:
    """Tokens per second of an evaluation, over all ranks, after batches that do not count."""
    config, world, layout = train_step.config, train_step.world, train_step.layout
    assert config.vocab_size is not None
    ids = RandomIds(WINDOWS * config.block_size + 1, config.vocab_size)
    at_once = evaluated_at_once(config, world, layout)
    dtype = layout.autocast_dtype(train_step.dtype)
    lengths = np.ones(config.vocab_size, dtype=np.int64)

    def seconds_of(batches: int) -> tuple[float, int]:
        windows = spread_windows(ids.tokens, config.block_size, batches * world.size * at_once)
        begun = time.perf_counter()
        found = train_step.evaluate(Evaluator(ids, windows, lengths, world, at_once, dtype))
        synchronize(world.device)
        return time.perf_counter() - begun, found.tokens

    seconds_of(1)
    seconds, tokens = seconds_of(EVALUATED)
    return tokens / seconds


def _batches(
    config: TrainConfig,
    data: DataFolder | None,
    world: World,
    layout: Layout,
) -> Batches:
    if data is not None:
        aligned = document_starts(data) if config.align_documents else None
        return plan_batches(config, data.split("train"), data.dataset_id, world, layout, aligned)
    assert config.vocab_size is not None
    ids = RandomIds(WINDOWS * config.block_size + 1, config.vocab_size)
    return plan_batches(config, ids, "random", world, layout)
