"""Weights averaged over the steps: e ← d·e + (1 − d)·w after each step that took effect.

d = min(ema_decay, (1 + n) / (10 + n)) in the step that follows n others: early on it is small, so
that the first weights are soon forgotten, and no correction is needed that would be wrong after a
run was resumed, or began with trained weights. After 9/(1 − ema_decay) steps or so it is ema_decay.

Each rank averages what it holds: under fsdp its shards; under ddp all, the same as every other
rank, so that nothing is sent and each can evaluate them. 4 bytes a parameter, as a weight.

Sources: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the decay
at the start: TensorFlow's tf.train.ExponentialMovingAverage, num_updates.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import is_dtensor, local_part


def decay_of(step: int, ema_decay: float) -> float:
    """The d of the step that follows `step` steps."""
    return min(ema_decay, (1 + step) / (10 + step))


def average_of(model: nn.Module, config: TrainConfig) -> "Average | None":
    """The Average that `config` asks for; None where it asks for none."""
    return None if config.ema_decay is None else Average(model, config.ema_decay)


class Average:
    """The average of a model's weights, in fp32 and sharded as they are.

    weights: by the parameters' names; {} before begin(), as an optimizer has no state then.
    """

    def __init__(self, model: nn.Module, ema_decay: float) -> None:
        self.model, self.ema_decay = model, ema_decay
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self) -> dict[str, Tensor]:
        """Begin with the weights as they are, where it has not begun; returns `weights`."""
        if not self.weights:
            self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        return self.weights

    def forget(self) -> None:
        """Begin anew at the next step."""
        self.weights = {}

    @torch.no_grad()
    def update(self, step: int, found_inf: Tensor) -> None:
        """Take in the weights after the step that followed `step` others.

        found_inf: a scalar on the device; where it is 1 the step had no effect, and the average
        stays as it is. On CUDA nobody waits for it.
        """
        share = 1 - decay_of(step, self.ema_decay)
        averages, weights = self._pairs()
        if found_inf.device.type == "cpu":
            if not found_inf.item():
                torch._foreach_lerp_(averages, weights, share)
            return
        on_device = (1 - found_inf) * share
        torch._foreach_lerp_(averages, weights, [on_device] * len(averages))

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """A block in which the model has the averaged weights, and `weights` holds its own.

        Plain tensors exchange their memory. FSDP2 gathers from views of its own on the shards, so
        there the values are exchanged, with a copy of one shard at a time.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self.model.named_parameters():
            average = self.weights[name]
            if is_dtensor(weight):
                mine, other = local_part(weight.detach()), local_part(average)
                kept = mine.clone()
                mine.copy_(other)
                other.copy_(kept)
            else:
                weight.data, average.data = average.data, weight.data

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """What this rank holds of the averages, and of the weights."""
        named = list(self.model.named_parameters())
        averages = [local_part(self.weights[name]) for name, _ in named]
        return averages, [local_part(weight.detach()) for _, weight in named]
