"""What the losses of a ladder's runs say of larger models: the law, and its predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist import load_config
from nanogpt_dist.errors import ConfigError, UsageError
from nanogpt_dist.ladder import scaling_law
from nanogpt_dist.ladder.ladder import Ladder
from nanogpt_dist.ladder.results import RunResult
from nanogpt_dist.ladder.scaling_law import BOUNDS, LEAST_SIZES, Fit, Law
from nanogpt_dist.ladder.sizes import size_of
from nanogpt_dist.training.schedule import rate_falls

COUNTED_FROM = 0.25  # share of a run with a constant rate from which on its evaluations count
NEAR = 10.0  # times the fitted sizes, up or down: so far the best use of FLOPs is told


@dataclass(frozen=True)
class Reading:
    """What a ladder's runs say: their results, the points of the fit, (n,) each, and the law."""

    results: tuple[RunResult, ...]
    n: NDArray[np.float64]
    d: NDArray[np.float64]
    loss: NDArray[np.float64]
    fit: Fit
    along_runs: bool

    @property
    def vocab_size(self) -> int | None:
        """Of the runs: rows of their token embedding."""
        return next(one.curve.config.vocab_size for one in self.results if one.curve)


def read(ladder: Ladder, found: Sequence[RunResult]) -> Reading:
    """Fit the law to those of a ladder's runs that are done. Raises ConfigError for too few."""
    done = [one for one in found if one.state == "done" and one.evaluated and one.size]
    fitted = [one for one in done if one.run.name not in ladder.held_out]
    sizes = len({one.size for one in fitted})
    if sizes < LEAST_SIZES:
        raise ConfigError(
            f"a law takes {LEAST_SIZES} sizes or more that are done, here are {sizes}; type the "
            "same again, without --table, to make the others"
        )
    along = all(has_constant_rate(one) for one in fitted)
    points = [point for one in fitted for point in _points(one, along)]
    n, d, loss = np.array(points, dtype=np.float64).T
    return Reading(tuple(found), n, d, loss, scaling_law.fit(n, d, loss), along)


def has_constant_rate(result: RunResult) -> bool:
    """Whether each val loss along a run is that of a shorter run, as its rate does not decay."""
    assert result.curve is not None
    return not rate_falls(result.curve.config)


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


@dataclass(frozen=True)
class Wanted:
    """What is to be predicted: N, and D where it was given; vocab_size: of a preset."""

    name: str
    parameters: float
    tokens: float | None = None
    vocab_size: int | None = None


def predict(reading: Reading, asked: Wanted) -> Prediction:
    """A prediction; where D is not given, or the law is in N alone, D is that of such runs."""
    n, d = asked.parameters, asked.tokens if reading.fit.in_tokens else None
    d = reading.fit.tokens_for(n) if d is None else d
    return Prediction(asked.name, n, d, *reading.fit.predict(n, d), n / float(reading.n.max()))


def held_out(ladder: Ladder, reading: Reading) -> list[Prediction]:
    """Of each size that was held out and is done: prediction beside what it has reached."""
    found = []
    for one in reading.results:
        if one.run.name in ladder.held_out and one.state == "done" and one.size and one.evaluated:
            d = one.total("tokens")
            made = predict(reading, Wanted(one.run.name, one.size.parameters, d))
            found.append(replace(made, tokens=d or made.tokens, reached=one.val_loss))
    return found


def wanted(text: str) -> Wanted:
    """--predict N, N:D, PRESET or PRESET:D. Raises UsageError, and as load()."""
    what, _, after = text.partition(":")
    wrong = UsageError(f"--predict {text}: give PARAMETERS:TOKENS like 1.5e9:30e9, or a preset")
    tokens = _number(after) if after else None
    if not what or (tokens is not None and not 0 < tokens < math.inf):
        raise wrong
    n = _number(what)
    if not math.isnan(n):
        if not 0 < n < math.inf:
            raise wrong
        return Wanted(text, n, tokens)
    config = load_config.with_vocabulary(load_config.load(what))
    n = size_of(config.architecture()).parameters
    tokens = tokens or config.ramp.tokens_before(config.max_iters)
    return Wanted(what, n, tokens, config.vocab_size)


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def undetermined(law: Law) -> list[str]:
    """The exponents at an end of what is searched: the losses tell of them that they lie beyond."""
    least, most = np.exp(BOUNDS)
    known = {"alpha": law.alpha} | ({} if law.beta is None else {"beta": law.beta})
    return [name for name, value in known.items() if not 1.01 * least < value < most / 1.01]


@dataclass(frozen=True)
class Use:
    """Of so many FLOPs: N and D of the lowest loss."""

    flops: float
    parameters: float
    tokens: float


def best_use(reading: Reading) -> Use | None:
    """The best use of the largest run's FLOPs, 6·N·D; None where N is not NEAR the fitted."""
    flops = 6 * float((reading.n * reading.d).max())
    try:
        n, d = reading.fit.law.best_for(flops)
    except (OverflowError, ZeroDivisionError):  # exponents next to 0, a term that is 0
        return None
    near = float(reading.n.min()) / NEAR <= n <= float(reading.n.max()) * NEAR
    return Use(flops, n, d) if near else None
