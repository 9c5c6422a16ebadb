"""The optimizer: parameter groups, the rate of each group, state, and how large that is.

All that the program knows of AdamW stands here. Another optimizer is another `Kind`, a setting in
config/ that `kind_of` reads, and a test.

Sources: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; Brown et al. 2020,
"Language Models are Few-Shot Learners", appendix B (the values).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.training.schedule import learning_rate

FP32 = 4  # bytes of a weight, and of its gradient

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of optimizer.

    make: the optimizer of parameter groups. zeros: a parameter's state before the first step, as
    the optimizer makes it, sharded as the parameter is; a checkpoint holds it as NAME.KEY.
    state_bytes: of that state, per element of the parameter.
    """

    make: Callable[[Groups, TrainConfig], torch.optim.Optimizer]
    zeros: Callable[[Tensor], dict[str, Tensor]]
    state_bytes: int


def _adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW in its fused form: CPU, CUDA and MPS have one."""
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def _adamw_zeros(parameter: Tensor) -> dict[str, Tensor]:
    return {
        # the fused form wants its step counter on the parameter's device, too
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }


ADAMW = Kind(_adamw, _adamw_zeros, state_bytes=2 * FP32)


def kind_of(config: TrainConfig) -> Kind:
    """The kind of optimizer that `config` asks for."""
    return ADAMW


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters of `model`."""
    return kind_of(config).make(parameter_groups(model, config.weight_decay), config)


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Every parameter in exactly one group: matrices decay, biases and LayerNorms do not.

    lr_scale: the group's learning rate, as a multiple of the schedule's.
    """
    parameters = list(model.parameters())
    return [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": weight_decay,
            "lr_scale": 1.0,
        },
        {
            "params": [p for p in parameters if p.ndim < 2],
            "weight_decay": 0.0,
            "lr_scale": 1.0,
        },
    ]


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Give each group its rate for the step that follows `step` steps; returns the schedule's."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def step_unless(found_inf: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's step where found_inf, a scalar on the device, is 0; where it is 1, none.

    Weights, moments and the step counter stay as they are then. A fused optimizer looks at it on
    the device, as for torch's GradScaler; any other has this process wait for it.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        optimizer.step()
    elif not found_inf.item():
        optimizer.step()


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a checkpoint names it: NAME.KEY → tensor; {} before a step."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def empty_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
) -> dict[str, Tensor]:
    """Give the optimizer state of zeros, in whatever layout `model` has; returns named_state()."""
    zeros = kind_of(config).zeros
    for parameter in model.parameters():
        optimizer.state[parameter] = zeros(parameter)
    return named_state(model, optimizer)


def training_bytes(config: TrainConfig) -> int:
    """Bytes of a parameter in training: weight, gradient, optimizer's state, averaged weight."""
    return FP32 + FP32 + kind_of(config).state_bytes + average_bytes(config)


def checkpoint_bytes(config: TrainConfig) -> int:
    """Bytes of a parameter in a checkpoint: its weight, the optimizer's state, its average."""
    return FP32 + kind_of(config).state_bytes + average_bytes(config)


def average_bytes(config: TrainConfig) -> int:
    """Bytes of a parameter's averaged weight, where there is one."""
    return 0 if config.ema_decay is None else FP32
