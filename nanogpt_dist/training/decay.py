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
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.durable import fsync_folder, storage_errors
from nanogpt_dist.training.metrics import RECORD
from nanogpt_dist.training.schedule import cooldown_start, fallen, is_wsd, stable_until


def before_decay(newest: Path, config: TrainConfig) -> Path:
    """The checkpoint from which `config` goes on, where `newest` is its run's newest.

    Another one where `newest` has decayed, and `config` decays later or would undo some of it: the
    newest good one of before. A run that decays faster from here on, as a shorter one, goes on.
    Raises ConfigError where none is left, BadDataError.
    """
    before, step = _config_of(newest), run_checkpoints.step_of_any(newest)
    start = stable_until(before)
    if not (is_wsd(before) and is_wsd(config)) or step <= start:
        return newest
    pairs = zip(fallen(step, config), fallen(step - 1, before), strict=True)
    if stable_until(config) <= start and all(now >= then for now, then in pairs):
        return newest
    for folder in storage.list_steps(newest.parent):
        if storage.step_at(folder) <= stable_until(config) and _is_stable(folder):
            return folder
    raise ConfigError(
        f"{newest.name} has decayed since step {start}, and no checkpoint of before is left; type "
        "--schedule constant to go on from it, or another --out-dir to start over"
    )


def refuse_to_branch(checkpoint: Path, config: TrainConfig) -> None:
    """Raise ConfigError where a run that begins with `checkpoint` would need one of before."""
    if (stable := before_decay(checkpoint, config)) != checkpoint:
        raise ConfigError(
            f"{checkpoint.name} has decayed; in its place type one of before: {stable}"
        )


def _is_stable(folder: Path) -> bool:
    """Whether a checkpoint is good, and has not decayed by its own settings."""
    if storage.verify(folder):
        return False
    return storage.step_at(folder) <= stable_until(_config_of(folder))


def set_aside_after(chosen: Path, what: str = "decayed") -> list[str]:
    """Rename the checkpoints behind `chosen` to WHAT-step-…, and copy what was logged of them.

    Returns the names. Needs the run lock. Killed within, it goes on when it is called again.
    Raises StorageError.
    """
    checkpoints, step = chosen.parent, storage.step_at(chosen)
    later = [path for path in storage.list_steps(checkpoints) if storage.step_at(path) > step]
    run, names = checkpoints.parent, []
    with storage_errors(checkpoints):
        places = [_free(checkpoints / f"{what}-{path.name}") for path in later]
        if later and (run / RECORD).is_file():  # numbered as the newest of them
            log = f"metrics-{places[0].name.replace('step-', '')}.jsonl"
            (run / log).unlink(missing_ok=True)  # a link would be followed
            shutil.copyfile(run / RECORD, run / log)
        # the newest first: those that are left tell where the decay started
        for path, place in zip(later, places, strict=True):
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


def starts_at(step: int, config: TrainConfig) -> bool:
    """Whether the decay of a wsd run starts at `step`."""
    return is_wsd(config) and step == stable_until(config)


def pin_decay_start(checkpoints: Path, step: int, config: TrainConfig) -> None:
    """Keep the checkpoint of `step` for good where the decay starts there. Raises StorageError."""
    if starts_at(step, config):
        pins = storage.read_pins(checkpoints)
        storage.write_pins(checkpoints, pins | {storage.step_name(step)})


def missed_start(newest: Path | None, step: int, config: TrainConfig) -> str | None:
    """What to tell where a save at `step` finds that of the decay's start missing.

    newest: the checkpoint before.
    """
    start, before = stable_until(config), 0 if newest is None else storage.step_at(newest)
    if not is_wsd(config) or not before < start < step:
        return None
    return (
        f"no checkpoint was saved at step {start}, where the decay starts: a longer run goes on "
        "from an earlier one, if one is kept"
    )


def settings_of_branch(
    name: str, step: int, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
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
    if (
        settings.get("schedule", "wsd") != "wsd"
        or "lr_decay_iters" in settings
        or not settings.get("decay_lr", True)
    ):
        raise UsageError(
            "--decay-from decays by wsd: leave --schedule, --lr-decay-iters and --no-decay-lr out"
        )
    if (warmup := settings.get("warmup_iters", 0)) > step:
        raise UsageError(f"--warmup-iters {warmup} ends after --decay-from {step}: leave it out")
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
    _refuse_another(Path(place), step)
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
    if config.decay_lr and step < config.warmup_iters:
        raise ConfigError(
            f"{run} still warms up at step {step}, until {config.warmup_iters}: give a later "
            "--decay-from"
        )
    start = stable_until(config)
    if step <= start:
        return
    what = "Muon's momentum" if cooldown_start(config) <= start else f"its {config.schedule} rate"
    listed = shlex.join(["nanogpt", "checkpoint", "list", str(run)])
    raise ConfigError(
        f"{run} has decayed at step {step}: {what} falls from step {start} on; give a --decay-from "
        f"up to there, of: {listed}"
    )


def _refuse_another(place: Path, step: int) -> None:
    """Raise ConfigError where `place` holds something else than a decay from `step` on."""
    newest = next(iter(storage.list_steps(run_folder.checkpoints_of(place))), None)
    if newest is None or storage.step_at(newest) == step:
        return
    config = _config_of(newest)
    if not is_wsd(config) or stable_until(config) != step:
        raise ConfigError(
            f"{place} holds a run that does not decay from {step}; type --out-dir NEW"
        )


def _no_checkpoint(run: Path, step: int) -> str:
    steps = [storage.step_at(path) for path in storage.list_steps(run_folder.checkpoints_of(run))]
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
        least = int((step - 0.5) / (1 - fraction)) - 1 if fraction < 1 else 0
        for steps in range(max(step + 1, least), most + 1):
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
