"""AdamW in its fused form, and with cautious weight decay.

Sources: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; Chen et al. 2025,
"Cautious Weight Decay".
"""

from typing import Any

import torch
from torch import Tensor

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import local_part


def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW of `groups`: CPU, CUDA and MPS have a fused form."""
    kind = CautiousAdamW if config.cautious_weight_decay else torch.optim.AdamW
    betas = (config.beta1, config.beta2)
    return kind(groups, lr=config.learning_rate, betas=betas, fused=True)


class CautiousAdamW(torch.optim.AdamW):
    """AdamW that decays a weight only where its step points to zero, too."""

    def __init__(self, groups: list[dict[str, Any]], **given: Any) -> None:
        # the fused kernel is to decay nothing
        cautious = [
            {**group, "cautious_decay": group["weight_decay"], "weight_decay": 0.0}
            for group in groups
        ]
        super().__init__(cautious, **given)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """The fused step, and the decay of what the weights were before it."""
        decayed = [
            (parameter, local_part(parameter).clone(), group["lr"] * group["cautious_decay"])
            for group in self.param_groups
            for parameter in group["params"]
            if group["cautious_decay"] and parameter.grad is not None
        ]
        super().step()
        for parameter, before, decay in decayed:
            momentum = local_part(self.state[parameter]["exp_avg"])  # has the sign of the step
            found_inf = getattr(self, "found_inf", None)
            cautious_decay(local_part(parameter), before, momentum, decay, found_inf)


def cautious_decay(
    weight: Tensor,
    before: Tensor,
    step: Tensor,
    decay: float,
    found_inf: Tensor | None,
) -> None:
    """weight ← weight − decay·before where `step`, that is subtracted, has the sign of `before`.

    found_inf: a scalar on the device; where it is 1 nothing is decayed. None: it is 0.
    """
    where = step * before > 0
    if found_inf is not None:
        where &= found_inf == 0
    weight.sub_(before * where, alpha=decay)
