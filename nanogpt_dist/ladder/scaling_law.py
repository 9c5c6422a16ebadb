"""A scaling law, fitted: L(N, D) = E + A/N^α + B/D^β, losses in nats/token.

N: parameters. D: tokens. Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language
Models", section 3.3 and appendix D.3: Huber loss of the residuals of log L, log-sum-exp of
(e, a − α log N, b − β log D), many starts. Here by Levenberg–Marquardt, in numpy, all starts at
once; log N and log D are centred, and α and β are exp(·): positive.

Shapes: S starts, n points, P parameters (e, a, log α, then b, log β where D counts).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanogpt_dist.errors import ConfigError

Floats = NDArray[np.float64]

DELTA = 1e-3  # Huber's, of Hoffmann et al.
STEPS, IDLE = 300, 12  # at most; of them in a row without gain, all starts together
BOUNDS = (np.log(0.01), np.log(5.0))  # of log α and log β
RESAMPLES = 200
LEAST_SIZES = 3  # for a law in N alone
LEAST_POINTS = 6  # for one in N and D
SPREAD = 0.1  # of log D beside the line through log N, from which on D counts by itself
START_E = (0.2, 0.5, 0.8, 0.95)  # of the lowest loss
START_EXPONENTS = (0.1, 0.3, 0.7, 1.5)


@dataclass(frozen=True)
class Law:
    """E + A/N^α + B/D^β; without beta, E + A/N^α."""

    E: float
    A: float
    alpha: float
    B: float = 0.0
    beta: float | None = None

    def __call__(self, n: ArrayLike, d: ArrayLike | None = None) -> Floats:
        """The loss of N parameters after D tokens."""
        loss = self.E + self.A / np.asarray(n, dtype=np.float64) ** self.alpha
        if self.beta is None:
            return loss
        assert d is not None
        return loss + self.B / np.asarray(d, dtype=np.float64) ** self.beta

    def best_for(self, flops: float) -> tuple[float, float]:
        """N and D of the lowest loss for C = 6·N·D FLOPs. Source: Hoffmann et al., equation 4.

        Raises OverflowError, ZeroDivisionError where the exponents are next to 0, or a term is 0.
        """
        assert self.beta is not None
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = G * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n, flops / (6 * n)

    def __str__(self) -> str:
        in_n = f"{self.E:.4g} + {self.A:.4g} / N^{self.alpha:.3g}"
        if self.beta is None:
            return f"L(N) = {in_n}"
        return f"L(N, D) = {in_n} + {self.B:.4g} / D^{self.beta:.3g}"


@dataclass(frozen=True)
class Fit:
    """A law, and those of resampled residuals; empty where the law goes through all points.

    path: log D = path[0] + path[1]·log N, on which the points of a law in N alone lie.
    """

    law: Law
    resampled: tuple[Law, ...]
    path: tuple[float, float]

    @property
    def in_tokens(self) -> bool:
        """Whether D counts by itself."""
        return self.law.beta is not None

    def tokens_for(self, n: float) -> float:
        """Tokens on the path of the points, for N parameters."""
        return float(np.exp(self.path[0] + self.path[1] * np.log(n)))

    def predict(self, n: float, d: float) -> tuple[float, float | None, float | None]:
        """Loss of N parameters after D tokens, and its interval of 90 %, None where unknown."""
        low, high = interval([float(law(n, d)) for law in self.resampled])
        return float(self.law(n, d)), low, high


def interval(values: list[float]) -> tuple[float | None, float | None]:
    """The 5th and the 95th percentile."""
    if not values:
        return None, None
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def separates(n: Floats, d: Floats) -> bool:
    """Whether D varies enough beside N for a law in both; n, d: (n,).

    Enough points, several N and several D, and log D off its line through log N.
    """
    if len(n) < LEAST_POINTS or len(set(n)) < LEAST_SIZES or len(set(d)) < LEAST_SIZES:
        return False
    x, y = np.log(n), np.log(d)
    beside = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(beside.std()) > SPREAD


def refuse_few(sizes: int) -> None:
    """Raises ConfigError where a law cannot be fitted to so many sizes."""
    if sizes < LEAST_SIZES:
        raise ConfigError(
            f"a law takes {LEAST_SIZES} sizes or more, here are {sizes}; give more to --sizes"
        )


def fit(n: ArrayLike, d: ArrayLike, loss: ArrayLike, seed: int = 0) -> Fit:
    """The law of losses (n,) of models of N parameters after D tokens, (n,) each.

    In N alone where D does not vary by itself. Raises ConfigError for too few sizes.
    """
    n, d, loss = (np.asarray(each, dtype=np.float64) for each in (n, d, loss))
    refuse_few(len(set(n)))
    slope, offset = np.polyfit(np.log(n), np.log(d), 1)
    problem = _Problem.of(n, d if separates(n, d) else None)
    y = np.log(loss)
    found, costs = _minimise(problem, _starts(problem, loss), y)
    best = found[np.argmin(costs)]
    laws = tuple(problem.law(each) for each in _resample(problem, best, y, seed))
    return Fit(problem.law(best), laws, (float(offset), float(slope)))


@dataclass(frozen=True)
class _Problem:
    """Centred log N and log D, (n,), and their means; z: None for a law in N alone."""

    x: Floats
    z: Floats | None
    centre: tuple[float, float]

    @classmethod
    def of(cls, n: Floats, d: Floats | None) -> "_Problem":
        x, z = np.log(n), None if d is None else np.log(d)
        centre = (float(x.mean()), 0.0 if z is None else float(z.mean()))
        return cls(x - centre[0], None if z is None else z - centre[1], centre)

    def terms(self, theta: Floats) -> Floats:
        """(S, P) → the terms' logarithms, (S, n, 2 or 3)."""
        e, a, alpha = theta[:, :1], theta[:, 1:2], np.exp(theta[:, 2:3])
        terms = [np.broadcast_to(e, (len(theta), len(self.x))), a - alpha * self.x]
        if self.z is not None:
            terms.append(theta[:, 3:4] - np.exp(theta[:, 4:5]) * self.z)
        return np.stack(terms, axis=2)

    def value_and_jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """(S, P) → log L, (S, n), and its derivatives, (S, n, P)."""
        terms = self.terms(theta)
        value = np.logaddexp.reduce(terms, axis=2)
        share = np.exp(terms - value[:, :, None])
        alpha = np.exp(theta[:, 2:3])
        columns = [share[:, :, 0], share[:, :, 1], -share[:, :, 1] * alpha * self.x]
        if self.z is not None:
            columns += [share[:, :, 2], -share[:, :, 2] * np.exp(theta[:, 4:5]) * self.z]
        return value, np.stack(columns, axis=2)

    def law(self, theta: Floats) -> Law:
        """(P,) → the law, of N and D as they are."""
        alpha = float(np.exp(theta[2]))
        E, A = float(np.exp(theta[0])), float(np.exp(theta[1] + alpha * self.centre[0]))
        if self.z is None:
            return Law(E, A, alpha)
        beta = float(np.exp(theta[4]))
        return Law(E, A, alpha, float(np.exp(theta[3] + beta * self.centre[1])), beta)


def _starts(problem: _Problem, loss: Floats) -> Floats:
    """(S, P): E a share of the lowest loss, the rest in equal parts, several exponents."""
    found = []
    for share in START_E:
        e = share * float(loss.min())
        rest = float(loss.mean()) - e
        if problem.z is None:
            found += [[np.log(e), np.log(rest), np.log(p)] for p in START_EXPONENTS]
        else:
            half = np.log(rest / 2)
            found += [
                [np.log(e), half, np.log(p), half, np.log(q)]
                for p in START_EXPONENTS
                for q in START_EXPONENTS
            ]
    return np.array(found)


def _cost(residuals: Floats) -> Floats:
    """Huber's loss, summed: (S, n) → (S,)."""
    size = np.abs(residuals)
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum(axis=1)


def _minimise(problem: _Problem, theta: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Levenberg–Marquardt from each row of theta (S, P) to y, (n,) or (S, n); (S, P), costs (S,).

    Huber's weights are of the step before.
    """
    damping, idle = np.full(len(theta), 1e-2), np.zeros(len(theta), dtype=np.int64)
    value, jacobian = problem.value_and_jacobian(theta)
    cost = _cost(value - y)
    for _ in range(STEPS):
        residuals = value - y
        weight = np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-300))[:, :, None]
        turned = (weight * jacobian).transpose(0, 2, 1)
        normal, gradient = turned @ jacobian, turned @ residuals[:, :, None]
        scale = np.einsum("spp->sp", normal) + 1e-9
        damped = normal + damping[:, None, None] * scale[:, :, None] * np.eye(theta.shape[1])
        step = np.clip(np.linalg.solve(damped, gradient)[:, :, 0], -1.0, 1.0)
        tried = theta - step
        tried[:, 2::2] = np.clip(tried[:, 2::2], *BOUNDS)
        its_value, its_jacobian = problem.value_and_jacobian(tried)
        its_cost = _cost(its_value - y)
        better = its_cost < cost
        idle = np.where(its_cost < cost * (1 - 1e-7), 0, idle + 1)
        theta = np.where(better[:, None], tried, theta)
        value = np.where(better[:, None], its_value, value)
        jacobian = np.where(better[:, None, None], its_jacobian, jacobian)
        cost = np.where(better, its_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if idle.min() >= IDLE:
            break
    return theta, cost


def _resample(problem: _Problem, best: Floats, y: Floats, seed: int) -> Floats:
    """Fits to the law plus residuals drawn with replacement and a random sign, (RESAMPLES, P).

    Residuals are scaled by √(n / (n − P)); none are made where the law has as many parameters as
    there are points.
    """
    points, freedom = len(y), len(y) - len(best)
    if freedom < 1:
        return np.empty((0, len(best)))
    value = problem.value_and_jacobian(best[None])[0][0]
    residuals = (y - value) * np.sqrt(points / freedom)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(residuals, (RESAMPLES, points)) * rng.choice(
        [-1.0, 1.0], (RESAMPLES, points)
    )
    return _minimise(problem, np.tile(best, (RESAMPLES, 1)), value + drawn)[0]
