"""A ladder: the runs of several sizes of one preset.

Settings that count steps (warm-up, decay, Muon's momentum) keep their share of max_iters.
"""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist import load_config
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, UsageError
from nanogpt_dist.ladder.sizes import Shape, shapes, size_of
from nanogpt_dist.ladder.sweep import Sweep, SweepRun
from nanogpt_dist.storage import run_folder

LADDERS = run_folder.OUT / "ladders"
RATIO = "20"  # tokens per parameter, as Hoffmann et al. 2022 find best
EVALUATIONS = 10  # of a run, unless eval_interval is given
IN_STEPS = ("warmup_iters", "lr_decay_iters", "muon_momentum_warmup", "muon_momentum_cooldown")
BY_SIZES = ("n_layer", "n_head", "n_embd", "n_kv_head")


@dataclass(frozen=True)
class Ladder:
    """The runs as a sweep; those whose names are in held_out are predicted, not fitted."""

    sweep: Sweep
    held_out: frozenset[str]

    @property
    def fitted_sizes(self) -> int:
        """How many sizes the law is fitted to once all runs are done."""
        runs = (run for run in self.sweep.runs if run.name not in self.held_out)
        return len({(run.settings["n_layer"], run.settings["n_embd"]) for run in runs})


def build(
    preset: str,
    config: TrainConfig,
    given: dict[str, Any],
    sizes: str,
    hold_out: str | None,
    ratios: str | None,
) -> Ladder:
    """The ladder of a preset; `given` are the settings that were typed, and stand in `config`.

    sizes, hold_out: as --sizes takes them; ratios: tokens per parameter, or None for the same
    max_iters at each size. Raises UsageError, ConfigError.
    """
    _check(preset, config, given, ratios)
    fitted, held = shapes(sizes, config), shapes(hold_out, config) if hold_out else []
    names = [shape.name for shape in (*fitted, *held)]
    if len(set(names)) < len(names):
        raise UsageError(f"of --sizes and --hold-out two are {_twice(names)}; leave one out")
    numbers = _numbers(ratios) if ratios else [None]
    shared = {name: value for name, value in given.items() if name not in ("out_dir", "max_iters")}
    # settings in steps are shares of these
    of_preset = int(load_config.read(preset).get("max_iters", TrainConfig().max_iters))

    def run(shape: Shape, ratio: float | None) -> SweepRun:
        name = shape.name if ratio is None else f"{shape.name}-{ratio:g}"
        return _run(name, config, shape, ratio, of_preset, shared)

    runs = [run(shape, ratio) for shape in fitted for ratio in numbers]
    last = [run(shape, numbers[-1]) for shape in held]
    out = Path(given.get("out_dir") or LADDERS / Path(preset).stem)
    sweep = Sweep(preset, out, (*runs, *last))
    return Ladder(sweep, frozenset(run.name for run in last))


def _check(preset: str, config: TrainConfig, given: dict[str, Any], ratios: str | None) -> None:
    if run_folder.as_run(preset) or run_folder.as_checkpoint(preset):
        line = shlex.join(["nanogpt", "show", "config", preset])
        raise ConfigError(
            f"a ladder begins from scratch, and {preset} has weights; give its settings alone: "
            f"{line} > FILE.toml"
        )
    if ratios and "max_iters" in given:
        raise UsageError("--tokens-per-parameter or --max-iters: one of them says how long")
    if typed := next((name for name in BY_SIZES if name in given), None):
        raise UsageError(
            f"--{typed.replace('_', '-')}: the sizes say so; give --sizes 4x64 for LAYERSxWIDTH"
        )
    if ramp := next((n for n in ("batch_ramp", "context_ramp") if getattr(config, n)), None):
        raise ConfigError(
            f"{ramp} counts in steps, which a ladder changes; take it out of a copy of the preset: "
            "nanogpt show config PRESET > FILE.toml"
        )
    if config.init_from:
        raise ConfigError("a ladder begins from scratch: give a preset without init_from")


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


def _numbers(ratios: str) -> list[float]:
    """Tokens per parameter, ascending. Raises UsageError."""
    try:
        numbers = sorted({float(word) for word in ratios.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise UsageError(
            f"--tokens-per-parameter {ratios!r}: give numbers above 0, like 20 or 5,10,20"
        )
    return numbers


def _run(
    name: str,
    config: TrainConfig,
    shape: Shape,
    ratio: float | None,
    of_preset: int,
    shared: dict[str, Any],
) -> SweepRun:
    """The run of one shape with so many tokens per parameter; None: of config.max_iters steps.

    of_preset: steps of which the preset's settings in steps are shares.
    """
    differs: dict[str, Any] = shape.settings()
    architecture = config.architecture().model_copy(update=differs)
    steps = config.max_iters
    if ratio is not None:
        tokens = ratio * size_of(architecture).parameters
        steps = config.ramp.steps_of(tokens)
    differs["max_iters"] = steps
    for setting in IN_STEPS:
        if setting not in shared and (before := getattr(config, setting)):
            differs[setting] = max(1, round(before * steps / of_preset))
    if "eval_interval" not in shared:
        differs["eval_interval"] = math.ceil(steps / EVALUATIONS)
    return SweepRun(name, differs, {**shared, **differs})
