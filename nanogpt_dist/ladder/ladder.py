"""A ladder: the runs of several sizes, and the law that their losses follow.

Settings that count steps (warm-up, decay, Muon's momentum) keep their share of max_iters.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist import load_config
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, UsageError
from nanogpt_dist.ladder import results, scaling_law
from nanogpt_dist.ladder.results import RunResult
from nanogpt_dist.ladder.scaling_law import Fit
from nanogpt_dist.ladder.sizes import Shape, shapes, size_of
from nanogpt_dist.ladder.sweep import Sweep, SweepRun
from nanogpt_dist.storage import run_folder

LADDERS = run_folder.OUT / "ladders"
RATIO = "20"  # tokens per parameter, as Hoffmann et al. 2022 find best
EVALUATIONS = 10  # of a run, unless eval_interval is given
COUNTED_FROM = 0.25  # share of a run with a constant rate from which on its evaluations count
IN_STEPS = ("warmup_iters", "lr_decay_iters", "muon_momentum_warmup", "muon_momentum_cooldown")
BY_SIZES = ("n_layer", "n_head", "n_embd", "n_kv_head")


@dataclass(frozen=True)
class Ladder:
    """The runs as a sweep; those whose names are in held_out are predicted, not fitted."""

    sweep: Sweep
    held_out: frozenset[str]


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
    _check(config, given, ratios)
    fitted, held = shapes(sizes, config), shapes(hold_out, config) if hold_out else []
    names = [shape.name for shape in (*fitted, *held)]
    if len(set(names)) < len(names):
        raise UsageError(f"of --sizes and --hold-out two are {_twice(names)}; leave one out")
    numbers = _numbers(ratios) if ratios else [None]
    shared = {name: value for name, value in given.items() if name not in ("out_dir", "max_iters")}
    # settings in steps are shares of these
    of_preset = int(load_config.read(preset).get("max_iters", TrainConfig().max_iters))

    def run(shape: Shape, ratio: float | None) -> SweepRun:
        name = shape.name + (f"-{ratio:g}" if len(numbers) > 1 else "")
        return _run(name, config, shape, ratio, of_preset, shared)

    runs = [run(shape, ratio) for shape in fitted for ratio in numbers]
    last = [run(shape, numbers[-1]) for shape in held]
    out = Path(given.get("out_dir") or LADDERS / Path(preset).stem)
    sweep = Sweep(preset, out, (*runs, *last))
    return Ladder(sweep, frozenset(run.name for run in last))


def _check(config: TrainConfig, given: dict[str, Any], ratios: str | None) -> None:
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


@dataclass(frozen=True)
class Reading:
    """What a ladder's runs say: their results, the points of the fit, (n,) each, and the law."""

    results: tuple[RunResult, ...]
    n: NDArray[np.float64]
    d: NDArray[np.float64]
    loss: NDArray[np.float64]
    fit: Fit
    along_runs: bool


def read(ladder: Ladder) -> Reading:
    """Fit the law to the runs that are done. Raises ConfigError where they are too few."""
    found = results.read(ladder.sweep)
    done = [one for one in found if one.state == "done" and one.evaluated]
    fitted = [one for one in done if one.run.name not in ladder.held_out]
    along = bool(fitted) and all(has_constant_rate(one) for one in fitted)
    points = [point for one in fitted for point in _points(one, along)]
    n, d, loss = np.array(points, dtype=np.float64).reshape(-1, 3).T
    return Reading(tuple(found), n, d, loss, scaling_law.fit(n, d, loss), along)


def has_constant_rate(result: RunResult) -> bool:
    """Whether each val loss along a run is that of a shorter run, as its rate does not decay."""
    assert result.curve is not None
    config = result.curve.config
    return not config.decay_lr or config.schedule == "constant"


def _points(result: RunResult, along: bool) -> list[tuple[float, float, float]]:
    """(N, D, loss) at the end of a run; along it: of each evaluation from COUNTED_FROM on."""
    assert result.curve is not None
    assert result.size is not None
    curve, n = result.curve, result.size.parameters
    pairs = list(zip(curve.val_tokens, curve.val_loss, strict=True))
    if along:
        pairs = [pair for pair in pairs if pair[0] >= COUNTED_FROM * curve.val_tokens[-1]]
    return [(n, tokens, loss) for tokens, loss in (pairs if along else pairs[-1:])]


@dataclass(frozen=True)
class Prediction:
    """The law's loss for N parameters after D tokens, its interval of 90 %, and what was reached.

    beyond: how many times N is larger than the largest that was fitted.
    """

    name: str
    parameters: float
    tokens: float
    val_loss: float
    low: float | None
    high: float | None
    beyond: float
    reached: float | None = None

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was reached."""
        return None if self.reached is None else self.val_loss / self.reached - 1


def predict(reading: Reading, name: str, n: float, d: float | None) -> Prediction:
    """A prediction; d: None for as many tokens as the fitted runs would have had at this size."""
    d = reading.fit.tokens_for(n) if d is None or not reading.fit.in_tokens else d
    loss, low, high = reading.fit.predict(n, d)
    return Prediction(name, n, d, loss, low, high, n / float(reading.n.max()))


def held_out(ladder: Ladder, reading: Reading) -> list[Prediction]:
    """Of each size that was held out and is done: prediction beside what it has reached."""
    found = []
    for one in reading.results:
        if one.run.name in ladder.held_out and one.state == "done" and one.size and one.evaluated:
            d = one.total("tokens")
            made = predict(reading, one.run.name, one.size.parameters, d)
            found.append(
                Prediction(**{**vars(made), "tokens": d or made.tokens, "reached": one.val_loss})
            )
    return found


def wanted(text: str) -> tuple[str, float, float | None]:
    """--predict N, N:D, PRESET or PRESET:D: its name, parameters, tokens. Raises as load()."""
    what, _, after = text.partition(":")
    try:
        tokens = float(after) if after else None
    except ValueError:
        tokens = math.nan
    if tokens is not None and not 0 < tokens < math.inf:
        raise UsageError(f"--predict {text}: give PARAMETERS:TOKENS like 1.5e9:30e9, or a preset")
    try:
        n = float(what)
    except ValueError:
        config = load_config.with_vocabulary(load_config.load(what))
        n = size_of(config.architecture()).parameters
        return what, n, tokens or config.ramp.tokens_before(config.max_iters)
    if not 0 < n < math.inf:
        raise UsageError(f"--predict {text}: give PARAMETERS:TOKENS like 1.5e9:30e9, or a preset")
    return text, n, tokens
