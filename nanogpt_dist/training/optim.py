"""AdamW over two groups and the learning rate as a function of the step.

Sources: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; Loshchilov & Hutter
2017, "SGDR", §3 (the cosine); Brown et al. 2020, "Language Models are Few-Shot Learners", appendix
B (the values).
"""

import math

import torch
from torch import nn

from nanogpt_dist.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the update that follows `step` updates: linear warm-up, then a cosine down to
    min_lr.
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    decay_iters = config.lr_decay_iters if config.lr_decay_iters is not None else config.max_iters
    if step >= decay_iters:
        return config.min_lr
    progress = (step - config.warmup_iters) / (decay_iters - config.warmup_iters)  # 0 → 1
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (
        config.learning_rate - config.min_lr
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every parameter in exactly one group: matrices and tables decay, biases and LayerNorms do
    not.
    """
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as the config says, in its fused form (CPU, CUDA and MPS have one)."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )
