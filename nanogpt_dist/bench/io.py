"""The speed of checkpoints: writing one, how long training waits for it, reading it."""

import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt_dist import checkpoint, storage, tokenizer
from nanogpt_dist.bench.clock import spread
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import memory_bytes, pick_dtype, synchronize
from nanogpt_dist.distributed.check_memory import smallest_room
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.load_config import with_vocabulary
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep


@dataclass(frozen=True)
class IoSpeed:
    """Of checkpoints of `bytes` bytes: weights and AdamW's moments, in fp32.

    ms_per_update: how long an update waits for a save that goes on beside it, which is for the
    copy; first_copy_ms: for the first of them, which gets its memory. save_ms: until a checkpoint
    is on the disk, with the hash of every file. verify_ms: to read it and compare the hashes;
    load_ms: into the model, after that.
    """

    bytes: int
    ms_per_update: float
    first_copy_ms: float
    save_ms: float
    save_gb_per_second: float
    verify_ms: float
    load_ms: float
    memory_bytes: int
    parameters: int
    layout: str
    ranks: int
    folder: str
    tokens_per_second: None = None  # nothing is trained
    mfu: None = None
    peak_tflops: None = None


def bench_io(config: TrainConfig, world: World, folder: Path, rounds: int) -> IoSpeed:
    """Save `rounds` times into a temporary folder in `folder`, and read the last.

    All ranks together.

    Raises ConfigError, CannotCreateError, StorageError.
    """
    config = with_vocabulary(config)
    layout = plan_layout(config, world, training_bytes(config), smallest_room(config, world))
    train_step = TrainStep(config, world, layout, pick_dtype(config.dtype, world.device))
    for parameter in train_step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    train_step.optimizer.step()  # which makes the moments
    synchronize(world.device)
    place = folder / world.broadcast_text(f".bench-io-{secrets.token_hex(4)}")
    try:
        return _measure(train_step, place, rounds)
    finally:
        if world.is_rank0:
            shutil.rmtree(place, ignore_errors=True)


def _measure(train_step: TrainStep, place: Path, rounds: int) -> IoSpeed:
    config, world = train_step.config, train_step.world
    copies: dict[str, torch.Tensor] = {}
    copying: list[float] = []
    saving: list[float] = []
    for step in range(1, rounds + 1):
        start = time.perf_counter()
        mine = train_step.contents(TrainState(step=step), copies)
        copying.append(time.perf_counter() - start)
        with world.raise_on_all_ranks():
            if world.is_rank0:
                storage.probe_writable(place)
        start = time.perf_counter()
        saved = checkpoint.save(world, place, mine, config, tokenizer.byte(), {})
        saving.append(time.perf_counter() - start)
        if step < rounds and world.is_rank0:
            storage.discard(saved)
    start = time.perf_counter()
    with world.raise_on_all_ranks():
        assert storage.verify(saved) == []
        # while no rank can have removed the folder
        size = sum(path.stat().st_size for path in saved.iterdir())
    verified = time.perf_counter()
    with world.raise_on_all_ranks():
        train_step.load(saved, {})
        synchronize(world.device)
    loaded = time.perf_counter()
    save_ms = spread(saving)[0]
    return IoSpeed(
        bytes=size,
        ms_per_update=spread(copying[1:] or copying)[0],
        first_copy_ms=1e3 * copying[0],
        save_ms=save_ms,
        save_gb_per_second=size / save_ms / 1e6,
        verify_ms=1e3 * (verified - start),
        load_ms=1e3 * (loaded - verified),
        memory_bytes=memory_bytes(world.device),
        parameters=train_step.model.num_params(),
        layout=str(train_step.layout),
        ranks=world.size,
        folder=str(place.parent),
    )
