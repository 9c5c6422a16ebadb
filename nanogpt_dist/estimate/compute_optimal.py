"""The best size for a budget of FLOPs: parameters and tokens, and a shape of about that size.

Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", approach 1 (the least loss
of many training curves at each budget), table 3: from 20 tokens a parameter at 400 M to 22 at 10 T.
Between the rows logarithms are interpolated, beyond them the ratio of the last row is kept.
Batch and learning rate of a size: Brown et al. 2020, "Language Models are Few-Shot Learners",
table 2.1.
"""

import itertools
import math
from dataclasses import dataclass

from nanogpt_dist.config import ModelConfig, TrainConfig, resolve
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.estimate.flops import model_flops_per_token
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.ladder.sizes import shapes

TABLE_3 = (  # parameters, tokens
    (400e6, 8.0e9),
    (1e9, 20.2e9),
    (10e9, 205.1e9),
    (67e9, 1.5e12),
    (175e9, 3.7e12),
    (280e9, 5.9e12),
    (520e9, 11.0e12),
    (1e12, 21.2e12),
    (10e12, 216.2e12),
)
GPT3 = (  # parameters, tokens of a step, learning rate
    (125e6, 0.5e6, 6.0e-4),
    (350e6, 0.5e6, 3.0e-4),
    (760e6, 0.5e6, 2.5e-4),
    (1.3e9, 1e6, 2.0e-4),
    (2.7e9, 1e6, 1.6e-4),
    (6.7e9, 2e6, 1.2e-4),
    (13e9, 2e6, 1.0e-4),
    (175e9, 3.2e6, 0.6e-4),
)
WIDTH = 64  # widths that are tried are multiples of it
WIDEST = 65_536


def optimal_tokens(parameters: float) -> float:
    """Tokens for a model of that size, where compute is what counts."""
    first, last = TABLE_3[0], TABLE_3[-1]
    if parameters <= first[0]:
        return parameters * first[1] / first[0]
    for (n, d), (more, many) in itertools.pairwise(TABLE_3):
        if parameters <= more:
            share = math.log(parameters / n) / math.log(more / n)
            return d * (many / d) ** share
    return parameters * last[1] / last[0]


def optimal_parameters(flops: float) -> float:
    """Parameters of the best size for 6 N D = `flops`, by halving."""
    low, high = 1.0, 1e16
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if 6 * middle * optimal_tokens(middle) < flops else (low, middle)
    return low


class TooFewFlopsError(ConfigError):
    """Even the smallest size costs more."""


@dataclass(frozen=True)
class Optimum:
    """A training for a budget: settings to type on top of a preset's, and all of them."""

    settings: dict[str, object]
    config: TrainConfig


def best_settings(base: TrainConfig, flops: float, ranks: int) -> Optimum:
    """The largest shape like base's whose optimal tokens cost no more than `flops`, and its steps.

    Widths go by WIDTH, depth and heads as the base's are to its width. The batch is GPT-3's of that
    size, and so is the learning rate, where the optimizer is AdamW. base.vocab_size must be set.
    Raises TooFewFlopsError.
    """
    _refuse_lengths(base)
    found = None
    low, high = 1, WIDEST // WIDTH
    while low <= high:
        middle = (low + high) // 2
        config, shape = _at_width(base, middle * WIDTH)
        parameters = sum(count_by_arithmetic(config).values())
        needed = optimal_tokens(parameters) * model_flops_per_token(config)
        if needed <= flops:
            found, low = (config, shape, parameters), middle + 1
        else:
            high = middle - 1
    if found is None:
        raise TooFewFlopsError(
            f"{flops:.2g} FLOPs are too few for a model {WIDTH} wide with its 20 tokens for each "
            "parameter; give more to --budget, e.g. --budget 1e18"
        )
    config, shape, parameters = found
    tokens = flops / model_flops_per_token(config)
    batch_size, micro_batches = _batch(config, parameters, tokens, ranks)
    steps = max(1, int(tokens / (batch_size * micro_batches * config.block_size)))
    settings: dict[str, object] = {
        **shape,
        "batch_size": batch_size,
        "gradient_accumulation_steps": micro_batches,
        "max_iters": steps,
        "warmup_iters": min(base.warmup_iters, steps // 50),
        "eval_interval": max(1, min(base.eval_interval, steps // 10)),
        **_rates(base, parameters),
    }
    whole = resolve({**base.model_dump(), **settings})
    return Optimum(settings, whole)


def smallest(base: TrainConfig) -> TrainConfig:
    """`base` at the least width that best_settings() tries."""
    return _at_width(base, WIDTH)[0]


def _refuse_lengths(base: TrainConfig) -> None:
    """Raises ConfigError where settings say how long a training is, or how large its model."""
    if base.init_from is not None:
        raise ConfigError("--budget and --hours choose the size: leave --init-from out")
    for name in ("batch_ramp", "context_ramp", "lr_decay_iters"):
        if getattr(base, name) is not None:
            flag = name.replace("_", "-")
            raise ConfigError(f"--budget and --hours choose the steps: leave --{flag} out")


def _at_width(base: TrainConfig, width: int) -> tuple[TrainConfig, dict[str, int]]:
    """`base` at another width, with its proportions."""
    shape = shapes(str(width), base)[0].settings()
    return base.model_copy(update=shape), shape


def _nearest(parameters: int) -> tuple[float, float, float]:
    return min(GPT3, key=lambda row: abs(math.log(row[0] / parameters)))


def _batch(config: ModelConfig, parameters: int, tokens: float, ranks: int) -> tuple[int, int]:
    """Micro-batch, and how many of it are a step: GPT-3's tokens, but 100 steps at least.

    What a rank gets is a power of two.
    """
    wanted = min(_nearest(parameters)[1], tokens / 100) / config.block_size / ranks
    each = 2 ** max(0, round(math.log2(max(1.0, wanted))))
    micro = min(each, 16)
    return micro, each // micro * ranks


def _rates(base: TrainConfig, parameters: int) -> dict[str, object]:
    if base.optimizer != "adamw":
        return {}
    rate = _nearest(parameters)[2]
    return {"learning_rate": rate, "min_lr": float(f"{rate / 10:g}")}
