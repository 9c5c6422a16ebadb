"""How long a rank works by itself in a step, and how long it waits for the others meanwhile.

Where ranks wait for each other in every step, all their steps take equally long: a slow rank shows
in what it does between two collectives. With ddp that is all from the first forward pass to the
last gradient; with fsdp, whose blocks wait to be gathered, the passes of the blocks and the loss.
On CUDA it is told by the device's own clock, and read once the step has been made.
"""

import contextlib
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.transfers import Moment

GPU_EVERY = 8  # steps: of these the passes of fsdp's blocks are timed in one
NOTHING = contextlib.nullcontext()
Spans = list[tuple[Moment, Moment]]


class StepTimes:
    """What one step of this rank has taken; to be read once the device has made it.

    data_s: it had waited for its batches. own: spans of its own work. waits: spans between them.
    """

    def __init__(self, began: Moment, data_s: float) -> None:
        self.began, self.data_s = began, data_s
        self.own: Spans = []
        self.waits: Spans = []

    @property
    def own_s(self) -> float | None:
        """Seconds of its own work; None: of this step not measured."""
        return sum(end - start for start, end in self.own) if self.own else None

    @property
    def communication_s(self) -> float:
        """Seconds in which it waited for others, or for the network, and for nothing else."""
        return sum(end - start for start, end in self.waits)


class OwnWork:
    """Times the steps of a TrainStep by its phases; `with own_work:` is its backward pass."""

    def __init__(self, train_step: TrainStep) -> None:
        self._device = train_step.world.device
        self._every = 1
        self._blocks: list[nn.Module] = []
        strategy = train_step.layout.strategy
        first = next(train_step.model.parameters())  # the token embedding: its gradient comes last
        self._by_gradient = strategy == "ddp" and train_step.world.size > 1
        if self._by_gradient:
            first.register_post_accumulate_grad_hook(self._gradients_are_made)
        elif strategy == "fsdp" and train_step.world.size > 1:
            on_gpu = self._device.type == "cuda"  # where an event is dearer than a look at a clock
            self._every = min(GPU_EVERY, train_step.config.log_interval) if on_gpu else 1
            self._blocks = list(train_step.model.transformer.h)
        self.waited_for_data = 0.0  # seconds, before the step that comes next
        self._made: deque[StepTimes] = deque()
        self._times: StepTimes | None = None  # of the step that is being made
        self._count = 0
        self._hooks: list[Any] = []
        self._ready: Moment | None = None
        self._in: Moment | None = None  # where a block's pass began, and the one before it ended
        self._out: Moment | None = None
        train_step.timed = self.phase

    def pop(self) -> StepTimes:
        """Of the oldest step that was not popped yet."""
        return self._made.popleft()

    def phase(self, name: str) -> AbstractContextManager[object]:
        """As TrainStep.timed: forward and backward of each micro-batch, then optimizer."""
        if name == "forward":
            self._out = None
            if self._times is None:
                self._begin()
        elif name == "backward":
            return self
        else:
            self._end()
        return NOTHING

    def __enter__(self) -> None:
        if self._out is not None and self._times is not None:  # since the last block: the head
            self._times.own.append((self._out, Moment(self._device)))
        self._out = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._left = Moment(self._device)
        if self._out is not None and self._times is not None:
            self._times.waits.append((self._out, self._left))

    def _begin(self) -> None:
        self._times = StepTimes(Moment(self._device), self.waited_for_data)
        self.waited_for_data = 0.0
        self._ready = None
        if self._blocks and self._count % self._every == 0:
            for block in self._blocks:
                self._hooks.append(block.register_forward_pre_hook(self._into_block))
                self._hooks.append(block.register_forward_hook(self._out_of_block))
        self._count += 1

    def _end(self) -> None:
        times, self._times = self._times, None
        assert times is not None
        if self._ready is not None:
            times.own, times.waits = [(times.began, self._ready)], [(self._ready, self._left)]
        elif not self._blocks:
            times.own = [(times.began, self._left)]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._made.append(times)

    def _gradients_are_made(self, _: Tensor) -> None:
        """In the last micro-batch nothing is left but to wait for their sums over the ranks."""
        self._ready = Moment(self._device)

    def _into_block(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Its weights are there: fsdp's own hook comes before, as in the backward pass."""
        self._enter()
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            inputs[0].register_hook(self._leave)

    def _out_of_block(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._leave()
        if output.requires_grad:
            output.register_hook(self._enter)

    def _enter(self, _: Tensor | None = None) -> None:
        self._in = Moment(self._device)
        if self._out is not None and self._times is not None:
            self._times.waits.append((self._out, self._in))

    def _leave(self, _: Tensor | None = None) -> None:
        self._out = Moment(self._device)
        if self._in is not None and self._times is not None:
            self._times.own.append((self._in, self._out))
