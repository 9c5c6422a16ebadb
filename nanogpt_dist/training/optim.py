"""The optimizer: the kinds that there are, the rate of each group, state, and how large that is.

AdamW alone, or Muon with it (muon.py); groups.py says which parameter goes by which. Another
optimizer is another `Kind`, a setting in config/ that `kind_of` reads, and a test.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B (the values).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.pass_memory import count_parameters
from nanogpt_dist.distributed.world import World
from nanogpt_dist.training.adamw import adamw
from nanogpt_dist.training.groups import Groups, parameter_groups
from nanogpt_dist.training.muon import Muon, muon_momentum
from nanogpt_dist.training.schedule import learning_rate

FP32 = 4  # bytes of a weight, and of its gradient


@dataclass(frozen=True)
class Kind:
    """One kind of optimizer.

    make: the optimizer of parameter groups, of a model over these ranks (None: one process) whose
    products are of a type. zeros: a parameter's state before the first step, as the optimizer makes
    it, sharded as the parameter is; a checkpoint holds it as NAME.KEY; by_muon: of a group with
    `splits`. state_bytes: of that state, per element of the parameter; matrix_bytes: of the blocks'
    matrices.
    """

    make: Callable[[Groups, TrainConfig, World | None, torch.dtype], torch.optim.Optimizer]
    zeros: Callable[[Tensor, bool], dict[str, Tensor]]
    state_bytes: int
    matrix_bytes: int


def _adamw(
    groups: Groups, config: TrainConfig, world: World | None, dtype: torch.dtype
) -> torch.optim.Optimizer:
    return adamw(groups, config)


def _muon(
    groups: Groups, config: TrainConfig, world: World | None, dtype: torch.dtype
) -> torch.optim.Optimizer:
    others = adamw([group for group in groups if "splits" not in group], config)
    return Muon([group for group in groups if "splits" in group], others, config, world, dtype)


def _zeros(parameter: Tensor, by_muon: bool) -> dict[str, Tensor]:
    if by_muon:
        return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}
    return {
        # the fused form wants its step counter on the parameter's device, too
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }


ADAMW = Kind(_adamw, _zeros, state_bytes=2 * FP32, matrix_bytes=2 * FP32)
MUON = Kind(_muon, _zeros, state_bytes=2 * FP32, matrix_bytes=FP32)


def kind_of(config: TrainConfig) -> Kind:
    """The kind of optimizer that `config` asks for."""
    return MUON if config.optimizer == "muon" else ADAMW


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    world: World | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimizer of all parameters of `model`, whose products are of `dtype`.

    world: the ranks that it is parallelized over; None: one process.
    """
    return kind_of(config).make(parameter_groups(model, config), config, world, dtype)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Give each group its rate for the step that follows `step` steps; returns the schedule's.

    Muon's get their momentum, too.
    """
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        if "splits" in group:
            group["momentum"] = muon_momentum(step, config)
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
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = zeros(parameter, "splits" in group)
    return named_state(model, optimizer)


def state_bytes(config: TrainConfig) -> float:
    """Bytes of the optimizer's state of a parameter; a mean, where it is not the same for all.

    vocab_size must be set, but for AdamW.
    """
    kind = kind_of(config)
    if kind.matrix_bytes == kind.state_bytes:
        return kind.state_bytes
    counted = count_parameters(config)
    saved = (kind.state_bytes - kind.matrix_bytes) * config.n_layer * counted.matrices
    return kind.state_bytes - saved / counted.total


def training_bytes(config: TrainConfig) -> float:
    """Bytes of a parameter in training: weight, gradient, optimizer's state, averaged weight."""
    return FP32 + FP32 + state_bytes(config) + average_bytes(config)


def checkpoint_bytes(config: TrainConfig) -> float:
    """Bytes of a parameter in a checkpoint: its weight, the optimizer's state, its average."""
    return FP32 + state_bytes(config) + average_bytes(config)


def average_bytes(config: TrainConfig) -> int:
    """Bytes of a parameter's averaged weight, where there is one."""
    return 0 if config.ema_decay is None else FP32
