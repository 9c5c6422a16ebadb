"""Whether the disk has room for the checkpoints that a run is about to save."""

import math
import resource

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.pass_memory import FP32, count_parameters
from nanogpt_dist.errors import StorageError
from nanogpt_dist.storage.durable import shown, storage_errors
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.optim import checkpoint_bytes, state_bytes
from nanogpt_dist.training.schedule import is_wsd, stable_until


def check_room(run: OpenRun, config: TrainConfig, layout: Layout, console: Console) -> None:
    """Warn where the disk has no room for what is going to be kept; all ranks together.

    Raises StorageError, on all of them, where it has none for the next checkpoint, or where a rank
    may not write a file as large as it will.
    """
    with run.world.raise_on_all_ranks():
        if run.world.rank < layout.shard:  # the others write none
            require_large_files(config, layout)
        if run.world.is_rank0 and (warning := room_warning(run, config)):
            console.line(f"warning: {warning}")


def room_warning(run: OpenRun, config: TrainConfig) -> str | None:
    """What to warn of before a model is built whose checkpoints do not all fit. vocab_size is set.

    Raises StorageError where the next one does not.
    """
    steps = storage.list_steps(run.checkpoints)
    made = storage.step_at(steps[0]) if steps else 0
    if made >= config.max_iters:
        return None
    folder, size = run.checkpoints, checkpoint_size(config)
    more = most_kept(config, len(steps) + saved_steps(config, made)) - len(steps)
    with storage_errors(folder):
        if storage.has_room(folder, max(1, more) * size):
            return None
        place = f"{storage.free_bytes(folder):,} are free at {shown(folder)}"
        if not storage.has_room(folder, size):
            raise StorageError(
                f"disk full: a checkpoint takes {size:,} bytes, {place}; make room, or type "
                "another --out-dir"
            )
    fewer = "lower --keep-checkpoints, " if config.keep_checkpoints > 2 else ""
    return (
        f"{more} more checkpoints take {more * size:,} bytes, {place}; make room, {fewer}or type "
        "another --out-dir"
    )


def require_large_files(config: TrainConfig, layout: Layout) -> None:
    """Raise StorageError where `ulimit -f` forbids a file of a checkpoint. vocab_size is set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    of_a_parameter = max(FP32, state_bytes(config))
    largest = int(of_a_parameter * count_parameters(config).total / layout.shard)
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise StorageError(
            f"a checkpoint has a file of {largest:,} bytes, and ulimit -f allows {limit:,}; type "
            "ulimit -f unlimited"
        )


def checkpoint_size(config: TrainConfig) -> int:
    """Bytes of the tensors in a checkpoint, but for step counters. vocab_size is set."""
    return int(checkpoint_bytes(config) * count_parameters(config).total)


def most_kept(config: TrainConfig, saves: int) -> int:
    """Checkpoints on the disk at most, of so many: kept, the best, and one that is written."""
    kept = config.keep_checkpoints + 2
    if config.keep_every is not None:
        kept += config.max_iters // config.keep_every
    return min(kept, saves)


def saved_steps(config: TrainConfig, after: int = 0) -> int:
    """How often a run saves after `after` steps, which are not all.

    At most: where that depends on the val loss, each one is the best yet.
    """
    intervals = {config.save_interval or config.eval_interval}
    if not config.always_save_checkpoint:
        intervals.add(config.eval_interval)  # each of which may be the best, too
    before = config.max_iters - 1
    saves = 1 + sum(before // every - after // every for every in intervals)
    if len(intervals) > 1:
        both = math.lcm(*intervals)
        saves -= before // both - after // both
    if not is_wsd(config):
        return saves
    decay = stable_until(config)  # where a longer run would go on from
    return saves + (after < decay < config.max_iters and all(decay % every for every in intervals))
