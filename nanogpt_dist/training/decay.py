"""A run with a stable part, and the decays that begin in it. No torch.

A wsd run is the same whatever its max_iters until its decay starts; the checkpoint there is pinned.
So a longer run goes on from there, or from the newest one before, and a decay of any length can be
branched off any checkpoint of the stable part. What has decayed already is kept under another name.
"""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve
from nanogpt_dist.errors import BadDataError, ConfigError, MissingInputError, UsageError
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import fsync_folder, storage_errors
from nanogpt_dist.training.metrics import RECORD
from nanogpt_dist.training.schedule import is_wsd, learning_rate, stable_until


def before_decay(newest: Path, config: TrainConfig) -> Path:
    """The checkpoint from which `config` goes on, where `newest` is its run's newest.

    Another one where `newest` has decayed and `config` is wsd whose decay starts later: the newest
    good one up to where it did start. Raises ConfigError where none is left.
    """
    before, step = _config_of(newest), storage.step_of(newest.name) or 0
    if not (is_wsd(before) and is_wsd(config)) or stable_until(config) <= stable_until(before):
        return newest
    start = stable_until(before)
    if step <= start:
        return newest
    for folder in storage.list_steps(newest.parent):
        if (storage.step_of(folder.name) or 0) <= start and not storage.verify(folder):
            return folder
    raise ConfigError(
        f"{newest.name} has decayed since step {start}, and no checkpoint of before is left; go on "
        "from it with --schedule constant, or begin another run with --out-dir"
    )


def set_decayed_aside(chosen: Path) -> list[str]:
    """Rename the checkpoints behind `chosen` to decayed-…, and copy what was logged of them.

    Returns the names. Needs the run lock. Killed within, it goes on when it is called again.
    Raises StorageError.
    """
    checkpoints, step = chosen.parent, storage.step_of(chosen.name) or 0
    later = [path for path in storage.list_steps(checkpoints) if _step(path) > step]
    run, names = checkpoints.parent, []
    with storage_errors(checkpoints):
        if later and (run / RECORD).is_file():
            shutil.copyfile(run / RECORD, run / f"metrics-decayed-{_step(later[0]):08d}.jsonl")
        for path in later:  # the newest first: those that are left tell where the decay started
            place = _free(checkpoints / f"decayed-{path.name}")
            for beside in sorted(checkpoints.glob(f"{path.name}.*")):  # what nanogpt eval found
                os.rename(beside, checkpoints / f"{place.name}{beside.name[len(path.name) :]}")
            os.rename(path, place)
            names.append(place.name)
        fsync_folder(checkpoints)
    storage.write_latest(checkpoints, chosen.name)
    return names


def _free(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 10**6))
    return path if not path.exists() else next(one for one in numbered if not one.exists())


def pin_decay_start(checkpoints: Path, step: int, config: TrainConfig) -> None:
    """Keep the checkpoint of `step` for good where the decay starts there. Raises StorageError."""
    if is_wsd(config) and step == stable_until(config):
        pins = storage.read_pins(checkpoints)
        storage.write_pins(checkpoints, pins | {storage.step_name(step)})


def branch(name: str, step: int, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The checkpoint of the run `name` at `step`, and `settings` with those of a decay from there.

    A wsd run whose decay starts at `step`: as long as its decay_fraction makes it, or to the
    max_iters in `settings`, from which the fraction then follows; in RUN-decay-STEP where no
    out_dir is given.

    Raises UsageError, MissingInputError, ConfigError.
    """
    run = run_folder.as_run(name)
    if run is None:
        raise UsageError(
            f"--decay-from takes a run, and {name[-80:]} is none; type nanogpt train RUN "
            f"--decay-from {step}"
        )
    if settings.get("schedule", "wsd") != "wsd" or "lr_decay_iters" in settings:
        raise UsageError("--decay-from decays by wsd: leave --schedule and --lr-decay-iters out")
    place = settings.get("out_dir") or f"{run}-decay-{step}"
    checkpoint, begun = (
        run_folder.checkpoints_of(folder) / storage.step_name(step) for folder in (run, Path(place))
    )
    source = str(checkpoint)
    if not checkpoint.is_dir():
        if not begun.is_dir():
            raise MissingInputError(_no_checkpoint(run, step))
        checkpoint, source = begun, place  # a branch that has begun goes on without it
    config = load(str(checkpoint), {**settings, "out_dir": place})
    refuse_decayed(_config_of(checkpoint), run, step)
    theirs = {
        **settings,
        "out_dir": place,
        "schedule": "wsd",
        "lr_decay_iters": None,
        **({} if config.decay_lr else {"decay_lr": True, "warmup_iters": 0}),
        **_length(step, settings, config.decay_fraction),
    }
    if stable_until(branched := config.model_copy(update=theirs)) != step:
        raise ConfigError(
            f"Muon's momentum falls over the last {config.muon_momentum_cooldown} steps, the decay "
            f"takes {branched.max_iters - step}: type --muon-momentum-cooldown "
            f"{branched.max_iters - step}"
        )
    return source, theirs


def refuse_decayed(config: TrainConfig, run: Path, step: int) -> None:
    """Raise ConfigError where a run with these settings is not at its learning_rate at `step`."""
    if learning_rate(step, config) == config.learning_rate and (
        step <= stable_until(config) or config.schedule == "constant" or not config.decay_lr
    ):
        return
    if step < config.warmup_iters:
        raise ConfigError(
            f"{run} still warms up at step {step}, until {config.warmup_iters}: give a later "
            "--decay-from"
        )
    listed = shlex.join(["nanogpt", "checkpoint", "list", str(run)])
    raise ConfigError(
        f"{run} has decayed at step {step}: its {config.schedule} rate falls from step "
        f"{stable_until(config)} on; give a --decay-from up to there, of: {listed}"
    )


def _no_checkpoint(run: Path, step: int) -> str:
    steps = [_step(path) for path in storage.list_steps(run_folder.checkpoints_of(run))]
    if not steps:
        return f"{run} has no checkpoint; type {shlex.join(['nanogpt', 'train', str(run)])}"
    nearest = min(steps, key=lambda other: abs(other - step))
    told = ", ".join(str(one) for one in sorted(steps)[-8:])
    return f"{run} has no checkpoint at step {step}, but at {told}: type --decay-from {nearest}"


def _length(step: int, settings: dict[str, Any], fraction: float) -> dict[str, Any]:
    """max_iters and decay_fraction with which the decay starts at `step`. Raises ConfigError."""
    given = settings.get("max_iters")
    if given is None:
        most = int(step / (1 - fraction)) + 2 if fraction < 1 else step + 1
        for steps in range(step + 1, most + 1):
            if steps - round(fraction * steps) == step:
                return {"max_iters": steps, "decay_fraction": fraction}
        raise ConfigError(
            f"no number of steps has its last {fraction:g} begin at step {step}: give --max-iters "
            f"above {step} in place of --decay-fraction"
        )
    if given <= step:
        raise ConfigError(f"--max-iters {given} ends before the decay from {step} on: give more")
    exact = (given - step) / given
    if "decay_fraction" in settings and given - round(fraction * given) != step:
        raise ConfigError(
            f"the last {fraction:g} of {given} steps begin at {given - round(fraction * given)}, "
            f"not at {step}: leave --decay-fraction or --max-iters out"
        )
    return {"max_iters": given, "decay_fraction": exact}


def _config_of(checkpoint: Path) -> TrainConfig:
    """As checkpoint.load_config(), without torch. Raises BadDataError."""
    try:
        return resolve(read_toml(checkpoint / run_folder.CONFIG))
    except ConfigError as error:
        raise BadDataError(f"{checkpoint / run_folder.CONFIG}: {error}") from None


def _step(path: Path) -> int:
    return storage.step_of(path.name) or 0
