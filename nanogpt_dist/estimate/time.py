"""How long a training takes: its steps, evaluations and saves, from an MFU or a bench.

A step takes its FLOPs over what the ranks reach together, with what is computed again: an MFU
falls by that, unless it was reached with it. An MFU that was given, or measured with
several ranks, has their communication in it; to one of a single rank what does not hide behind
computing is added, and to any what more nodes than one add.
"""

import math
from dataclasses import dataclass

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.config.ramps import Piece
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.estimate.accelerators import Accelerator
from nanogpt_dist.estimate.communication import (
    Collective,
    Links,
    Pass,
    communication,
    exposed_seconds,
)
from nanogpt_dist.estimate.flops import (
    hardware_over_model,
    model_flops_per_token,
    recomputed_flops,
)
from nanogpt_dist.estimate.mfu import Bench, Mfu
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.training.disk_room import saved_steps
from nanogpt_dist.training.optim import checkpoint_bytes

A_NODE = 8  # GPUs, of those that published their MFU


@dataclass(frozen=True)
class Speed:
    """What a training goes by. disk: bytes per second of one checkpoint. bench: where there is one.

    mfu: of the peak of all ranks together.
    """

    device: Accelerator
    ranks: int
    links: Links
    disk: float
    mfu: Mfu
    bench: Bench | None = None

    @property
    def flops(self) -> float:
        """FLOP/s that all ranks reach; those of one CPU share its peak."""
        return self.mfu.share * self.peak_flops

    @property
    def peak_flops(self) -> float:
        """FLOP/s of all ranks at most."""
        if self.mfu.peak_tflops is None:
            return self.device.peak_tflops * 1e12 * self.devices
        together = 1 if self.device.kind == "cuda" else self.mfu.ranks or 1
        return self.mfu.peak_tflops * 1e12 * together * self.devices

    @property
    def devices(self) -> float:
        """GPUs; else machines, whose ranks share theirs."""
        on_gpus = self.device.kind == "cuda"
        return self.ranks if on_gpus else self.ranks / self.links.ranks_per_node


@dataclass(frozen=True)
class Step:
    """Of the last piece of a ramp, which most steps are like. seconds: with what is exposed.

    exposed_seconds: of communication, as far as it is not in the MFU already. waits_seconds: of all
    of it, as the links have it.
    """

    seconds: float
    computing_seconds: float
    exposed_seconds: float
    waits_seconds: float
    collectives: tuple[Collective, ...]
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Over all ranks."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Duration:
    """Seconds of a whole training, by what they go to; saves: those that the training waits for.

    start: of the first step, where a bench has measured it. evaluations, checkpoints: how many.
    save_seconds: of one checkpoint of checkpoint_bytes.
    """

    step: Step
    steps_seconds: float
    start_seconds: float
    evaluations: int
    evaluation_seconds: float
    checkpoints: int
    checkpoint_bytes: int
    save_seconds: float
    waiting_seconds: float

    @property
    def total_seconds(self) -> float:
        """From the first step to the last checkpoint."""
        evaluating = self.evaluations * self.evaluation_seconds
        return self.start_seconds + self.steps_seconds + evaluating + self.waiting_seconds


def duration(
    config: TrainConfig,
    layout: Layout,
    speed: Speed,
    val_tokens: int | None = None,
) -> Duration:
    """The Duration of `config` in `layout`. vocab_size must be set.

    val_tokens: of the data set's val split, where it is known: it may be too small for eval_iters.
    """
    pieces = config.ramp.pieces
    steps = [_step(config, layout, speed, piece) for piece in pieces]
    ends = [*(piece.first for piece in pieces[1:]), config.max_iters]
    counts = [
        max(0, min(end, config.max_iters) - piece.first)
        for piece, end in zip(pieces, ends, strict=True)
    ]
    evaluations = evaluated_steps(config)
    size = int(checkpoint_bytes(config) * sum(count_by_arithmetic(config).values()))
    saves, save = saved_steps(config), size / speed.disk
    every = steps[-1].seconds * config.max_iters / max(1, saves)
    beside = speed.device.kind == "cuda" and config.async_save is not False
    # the last save is waited for; one beside the training where the next comes too soon
    waiting = save + (saves - 1) * (max(0.0, save - every) if beside else save)
    start = speed.bench.first_step_seconds if speed.bench else 0.0
    return Duration(
        step=steps[-1],
        steps_seconds=sum(n * step.seconds for n, step in zip(counts, steps, strict=True)),
        start_seconds=max(0.0, start - steps[0].seconds),
        evaluations=evaluations,
        evaluation_seconds=_evaluation(config, speed, val_tokens),
        checkpoints=saves,
        checkpoint_bytes=size,
        save_seconds=save,
        waiting_seconds=waiting,
    )


def evaluated_steps(config: TrainConfig) -> int:
    """How often the training evaluates: every eval_interval steps, and at its end."""
    return -(-config.max_iters // config.eval_interval)


def _step(config: TrainConfig, layout: Layout, speed: Speed, piece: Piece) -> Step:
    """One step of this piece of the ramp."""
    flops = piece.tokens * model_flops_per_token(config, piece.length)
    computing = flops / (speed.flops * slowed(config, layout, speed.mfu, piece.length))
    passes = max(1, piece.sequences // speed.ranks // layout.batch_size)
    again = recomputed_flops(config, layout.activation_checkpointing, piece.length)
    once = piece.length * model_flops_per_token(config, piece.length)
    forward, backward = once / 3, once * 2 / 3 + again
    in_a_pass = computing / passes / (forward + backward)
    timed = Pass(forward * in_a_pass, backward * in_a_pass, passes)
    collectives = communication(config, layout, speed.links, timed)
    waits = exposed_seconds(collectives)
    exposed = exposed_seconds([each for each in collectives if not _is_measured(each, speed)])
    return Step(computing + exposed, computing, exposed, waits, tuple(collectives), piece.tokens)


def slowed(config: TrainConfig, layout: Layout, mfu: Mfu, length: int | None = None) -> float:
    """What is left of an MFU, as a share, where `layout` recomputes more than its own did."""
    here, there = (
        hardware_over_model(config, mode, length)
        for mode in (layout.activation_checkpointing, mfu.activation_checkpointing)
    )
    return there / here


def _is_measured(each: Collective, speed: Speed) -> bool:
    """Whether the MFU has it in it: a given one all, one of several ranks that of a node.

    One of more ranks than a node has that of the network, too.
    """
    ranks = speed.mfu.ranks or 1
    if speed.mfu.kind == "given" or ranks > max(A_NODE, speed.links.ranks_per_node):
        return True
    return ranks > 1 and each.over == "link"


def _evaluation(config: TrainConfig, speed: Speed, val_tokens: int | None) -> float:
    """Seconds of one evaluation: forward passes, with averaged weights once more."""
    windows = config.eval_iters * config.batch_size
    if val_tokens is not None:
        windows = min(windows, max(1, (val_tokens - 1) // config.block_size))
    batches = math.ceil(windows / config.batch_size)
    rounds = math.ceil(batches / speed.ranks)  # ranks without a batch wait
    tokens = min(windows, config.batch_size * batches) * config.block_size
    tokens = max(tokens, rounds * speed.ranks * config.batch_size * config.block_size)
    weights = 1 if config.ema_decay is None else 2
    if speed.bench and speed.bench.evaluation_tokens_per_second:
        there = speed.bench.ranks if speed.device.kind == "cuda" else 1
        measured = speed.bench.evaluation_tokens_per_second / there * speed.devices
        return weights * tokens / measured
    return weights * tokens * model_flops_per_token(config) / 3 / speed.flops
