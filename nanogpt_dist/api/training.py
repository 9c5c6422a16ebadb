"""A training run as a function call."""

import gc
import os
import shlex
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_dist import load_config
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import ConfigError, NanogptError, OutOfMemoryError, UsageError
from nanogpt_dist.presets import DEFAULT_PRESET
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder

if TYPE_CHECKING:
    from nanogpt_dist.distributed.layout import Layout
    from nanogpt_dist.distributed.watchdog import ExitWith
    from nanogpt_dist.distributed.world import World
    from nanogpt_dist.training.loop import Result

Note = Callable[[str], None]


def train(
    config: TrainConfig | str | Path = DEFAULT_PRESET,
    *,
    fresh: bool = False,
    branch_from: Path | None = None,
    decay_from: int | None = None,
    stop: StopRequest | None = None,
    **settings: Any,
) -> "Result":
    """Train, or go on from the newest good checkpoint of the run folder; returns where it ended.

    config: settings, or what `nanogpt train` takes: a preset, a file, a run, a checkpoint to branch
    from into another out_dir. settings: go on top; their names are those of nanogpt_dist.config.
    fresh: begin at step 0, and refuse where the run folder has checkpoints. branch_from: the
    checkpoint with which a new run begins. decay_from: the step of a run's checkpoint from which
    its learning rate decays, in a folder of its own. stop: ends the run after the step at which it
    is asked for, all saved, and the result's verdict is `stopped`; without it Ctrl-C leaves at
    once.

    One process; under torchrun each takes its rank.

    Raises: NanogptError, the same on all ranks.

    >>> ng.train("quickstart", max_iters=200, device="cpu").val_loss
    """
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in settings.items()
    }
    if isinstance(config, TrainConfig) and decay_from is not None:
        raise UsageError(
            f"decay_from takes a run's folder: type train('out/RUN', decay_from={decay_from})"
        )
    if not isinstance(config, TrainConfig):
        name = str(config)
        if decay_from is not None:
            name, settings = decay_branch(name, decay_from, settings, fresh)
        branch_from = branch_from or branch_point(name, settings.get("out_dir"), fresh)
        config = load_config.load(name, settings)
        config = with_rows_of_data(name, config, "vocab_size" in settings, warnings.warn)
    elif settings:
        config = resolve(config.model_dump(), settings)
    if config.out_dir is None:
        raise ConfigError("out_dir is not set: give out_dir='out/NAME'")

    from nanogpt_dist import devices
    from nanogpt_dist.training.loop import train as run

    asked = StopRequest() if stop is None else stop
    while True:
        try:
            with connected(config, stop) as world:
                return run(config, world, asked, fresh, branch_from, expected_speed)
        except OutOfMemoryError as error:
            # several ranks cannot begin anew within their processes
            if not error.falls_back or int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what was too much
        fresh = False  # what is there by now is this run's own
        gc.collect()
        devices.give_back_cached_memory()


@contextmanager
def connected(
    config: TrainConfig,
    stop: StopRequest | None,
    exit_with: "ExitWith | None" = None,
) -> "Iterator[World]":
    """This process's place among the ranks of torchrun, or alone; in ranks, `stop` listens then.

    exit_with: as world.connect() takes it.
    """
    from nanogpt_dist.distributed.strategy import needs_group
    from nanogpt_dist.distributed.world import connect

    with connect(config.device, config.timeout_s, needs_group(config), exit_with) as world:
        # until here the signals end a rank that waits for others, deep in C++
        if stop is not None and "RANK" in os.environ:
            stop.listen()
        yield world


def expected_speed(config: TrainConfig, layout: "Layout", world: "World") -> float | None:
    """Tokens per second that training is expected to reach on these ranks; None: unknown."""
    if world.device.type != "cuda":
        return None
    from nanogpt_dist.devices import device_name
    from nanogpt_dist.estimate.expected import expected_tokens_per_second

    place = device_name(world.device), world.size, world.local_size
    return expected_tokens_per_second(config, layout, *place)


def decay_branch(
    name: str, step: int, settings: dict[str, Any], fresh: bool
) -> tuple[str, dict[str, Any]]:
    """What to train, and by which settings, where the run `name` is to decay from `step` on.

    Raises UsageError, MissingInputError, BadDataError, ConfigError.
    """
    from nanogpt_dist.training import decay

    if fresh:
        raise UsageError(f"--decay-from {step} goes on from a checkpoint: leave --fresh out")
    return decay.settings_of_branch(name, step, settings)


def branch_point(name: str, out_dir: str | None, fresh: bool) -> Path | None:
    """The checkpoint with which a new run begins, where `name` is one.

    Raises UsageError where out_dir is not another folder, or with `fresh`.
    """
    checkpoint = run_folder.as_checkpoint(name)
    if checkpoint is None:
        return None
    run = run_folder.run_of(checkpoint)
    if out_dir is None or Path(out_dir).resolve() == run.resolve():
        resume = (
            f"its run goes on with: {shlex.join(['nanogpt', 'train', str(run)])}"
            if run_folder.as_run(str(run))
            else "its run is not here"
        )
        raise UsageError(
            f"{checkpoint.name} is a checkpoint; {resume}; a branch of it needs a new --out-dir DIR"
        )
    if fresh:
        raise UsageError(f"{checkpoint.name} is a checkpoint to go on from: leave --fresh out")
    return checkpoint


def with_rows_of_data(name: str, config: TrainConfig, typed: bool, note: Note) -> TrainConfig:
    """`config` of load_config.load(name) with the vocab_size that its data set wants.

    typed: whether somebody has given vocab_size, which then stays. note: is told where a preset's
    does not hold. The commonest mistakes are in the data: they show here, before torch takes its
    seconds to load.

    Raises: MissingInputError, BadDataError, StorageError.
    """
    try:
        tokenizer = DataFolder.open(config.dataset).tokenizer
    except NanogptError:
        # maybe only this rank does not see it: all of them tell it together, later
        if "RANK" in os.environ:
            return config
        raise
    if typed:
        return config
    fitted = load_config.fit_vocabulary(name, config, tokenizer)
    if config.vocab_size not in (None, fitted.vocab_size):
        note(
            f"{config.dataset} has {tokenizer.n_vocab:,} ids: vocab_size is "
            f"{fitted.vocab_size:,}, not the {config.vocab_size:,} of {name}"
        )
    return fitted
