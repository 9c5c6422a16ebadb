"""The learning rate of each step: a pure function of the step and the settings. No torch.

Each schedule warms up linearly, stays at learning_rate until its decay starts, and then falls to
min_lr. constant has no decay; cosine and linear decay from the end of the warm-up on; wsd over the
last decay_fraction of the steps, so that where its decay starts is the only thing that depends on
how many steps are made: a longer run is the same until there.

Sources: Loshchilov & Hutter 2017, "SGDR", §3 (the cosine); Hu et al. 2024, "MiniCPM", §4 (wsd);
Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", §4
(a linear decay, and its length).
"""

import math

from nanogpt_dist.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the step that follows `step` steps.

    Without decay_lr it is learning_rate, without warm-up.
    """
    peak, least = config.learning_rate, config.min_lr
    if not config.decay_lr:
        return peak
    if step < config.warmup_iters:
        return peak * (step + 1) / (config.warmup_iters + 1)
    if config.schedule == "constant":
        return peak
    start, end = decay_start(config), decay_end(config)
    if step >= end:
        return least
    if step < start:
        return peak
    progress = (step - start) / (end - start)  # 0 → 1
    if config.schedule == "cosine":
        return least + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - least)
    return peak - progress * (peak - least)


def is_wsd(config: TrainConfig) -> bool:
    """Whether a run is the same until its decay starts, however many steps it makes."""
    return config.decay_lr and config.schedule == "wsd"


def stable_until(config: TrainConfig) -> int:
    """The steps that a run makes before max_iters decides anything, where is_wsd().

    The learning rate falls behind them, or Muon's momentum, if that begins earlier.
    """
    start = decay_start(config)
    if config.optimizer == "muon" and config.muon_momentum_cooldown:
        start = min(start, max(0, config.max_iters - config.muon_momentum_cooldown))
    return start


def decay_end(config: TrainConfig) -> int:
    """The step from which on the rate is min_lr."""
    return config.max_iters if config.lr_decay_iters is None else config.lr_decay_iters


def decay_start(config: TrainConfig) -> int:
    """The last step at learning_rate: from the next one on it falls, if the schedule has a decay.

    1 − decay_fraction of the steps for wsd, but not before the end of the warm-up.
    """
    if config.schedule != "wsd":
        return config.warmup_iters
    end = decay_end(config)
    return max(config.warmup_iters, end - round(config.decay_fraction * end))
