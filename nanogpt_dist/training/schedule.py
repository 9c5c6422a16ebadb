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


def rate_falls(config: TrainConfig) -> bool:
    """Whether the learning rate falls again after its warm-up."""
    return config.decay_lr and config.schedule != "constant"


def stable_until(config: TrainConfig) -> int:
    """The steps that a run makes before its learning rate falls, or Muon's momentum.

    Where is_wsd(), max_iters decides nothing before; where nothing falls, it is max_iters.
    """
    start = decay_start(config) if rate_falls(config) else config.max_iters
    cooldown = cooldown_start(config)
    return max(0, min(start, cooldown)) if cooldown < config.max_iters else start


def fallen(step: int, config: TrainConfig) -> tuple[float, float]:
    """How far rate and Muon's momentum have fallen in the step that follows `step`, where is_wsd().

    Each 0 → 1, whatever their peaks are.
    """
    spans = (
        (decay_start(config), decay_end(config)),
        (cooldown_start(config), config.max_iters),
    )
    rate, momentum = (
        0.0 if step <= start else min(1.0, (step - start) / max(1, end - start))
        for start, end in spans
    )
    return rate, momentum


def cooldown_start(config: TrainConfig) -> int:
    """The last step with all of Muon's momentum; below 0: none, max_iters: it does not fall."""
    return config.max_iters - (config.muon_momentum_cooldown if config.optimizer == "muon" else 0)


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
