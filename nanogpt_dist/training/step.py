"""One step: forward and backward over the global batch, one all-reduce, clip, optimizer.

On CUDA nothing in it waits for the device: what a step comes to is read from its StepResult.

Shape letters: B sequences in a micro-batch, T = block_size.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_dist import checkpoint
from nanogpt_dist.checkpoint import Contents, TrainState
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import autocast, set_up
from nanogpt_dist.distributed.compilation import keeps_gradients
from nanogpt_dist.distributed.layout import Layout, is_compiled
from nanogpt_dist.distributed.strategy import lay_out, reducing, reshard, whole
from nanogpt_dist.distributed.world import World
from nanogpt_dist.evaluation.loss import Evaluation, Evaluator
from nanogpt_dist.training import optim
from nanogpt_dist.training.ema import average_of
from nanogpt_dist.training.spikes import Limits
from nanogpt_dist.transfers import Moment, Readout, Staged, to_device


class StepResult:
    """The result of one step, the same on all ranks.

    On CUDA it is on its way until the first of its figures is asked for, which waits for it.
    """

    def __init__(
        self,
        learning_rate: float,
        limits: Limits,
        figures: Readout,
        ranks: int,
    ) -> None:
        self.learning_rate, self.limits = learning_rate, limits
        self._figures, self._ranks = figures, ranks

    @property
    def late(self) -> bool:
        """Whether it comes while this process goes on."""
        return self._figures.late

    @property
    def made(self) -> Moment:
        """When the device has made the step."""
        return self._figures.copied

    @functools.cached_property
    def _values(self) -> list[float]:
        return self._figures.get().tolist()

    @property
    def grad_norm(self) -> float:
        """The norm of the whole gradient, before it was clipped."""
        return self._values[0]

    @property
    def loss(self) -> float:
        """The mean over the whole global batch, in nats/token."""
        return self._values[1] / self._ranks

    @property
    def finite(self) -> bool:
        """Whether the gradient was; otherwise weights and optimizer were left as they were."""
        return math.isfinite(self.grad_norm)

    @property
    def spiked(self) -> bool:
        """Whether loss or norm stand out of the steps before."""
        return self.limits.exceeded_by(self.loss, self.grad_norm)

    @property
    def skipped(self) -> bool:
        """Whether weights and optimizer were left as they were."""
        return bool(self._values[2])


NO_LIMITS = Limits()
MAX_SKIPPED = 3  # steps in a row whose gradient was not finite
MAX_SKIPPED_FP16 = 20  # the scaler starts at 2^16 and halves at each of them


class TrainStep:
    """A model and its optimizer, parallelized over the ranks.

    init: with initial weights, else to be loaded.

    n_vocab: ids of the data; None: as many as the model has rows.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        layout: Layout,
        dtype: torch.dtype,
        init: bool = True,
        n_vocab: int | None = None,
    ) -> None:
        set_up(world.device, config.dtype, config.deterministic)
        self.config, self.world, self.layout, self.dtype = config, world, layout, dtype
        self.model, self.wrapped = lay_out(config, layout, world, dtype, init, n_vocab)
        self.optimizer = optim.make_optimizer(self.model, config, world, dtype)
        self.average = average_of(self.model, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
        # a benchmark has a clock
        self.timed: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext
        self.origin: str | None = None  # whose the first weights were; None for seeded ones
        self.max_skipped = MAX_SKIPPED_FP16 if self.scaler.is_enabled() else MAX_SKIPPED
        if layout.strategy == "ddp" and world.size > 2:
            self._settle_buckets()

    @property
    def starts_slowly(self) -> bool:
        """Whether its first two steps and its first evaluation may take one rank minutes.

        Kernels are compiled and tuned in them, and GPUs connected.
        """
        device = self.world.device.type
        return device != "cpu" or is_compiled(self.config, device)

    def load(self, saved: Path, facts: dict[str, Any]) -> None:
        """Load a verified checkpoint.

        Raises BadDataError where it is of another architecture.
        """
        checkpoint.load_weights(saved, self.model)
        checkpoint.load_moments(
            saved, lambda: optim.empty_state(self.model, self.optimizer, self.config)
        )
        if self.average is not None:
            self.average.forget()
            checkpoint.load_averages(saved, self.average.begin)
        if self.scaler.is_enabled() and facts.get("scaler"):
            self.scaler.load_state_dict(facts["scaler"])

    def step(self, step: int, batches: Staged, limits: Limits = NO_LIMITS) -> StepResult:
        """Make step number `step` (from 0) from this rank's micro-batches ((B, T), (B, T)).

        A gradient that is not finite changes nothing. It has been reduced by then, so all ranks see
        the same one. With on_spike skip, nothing is changed beyond `limits` either.
        """
        seed(self.world.device, dropout_seed(self.config.seed, step, self.world.rank))
        rate = optim.set_learning_rates(self.optimizer, step, self.config)
        loss = torch.zeros((), device=self.world.device)
        micro_batches = to_device(batches, self.world.device)
        for i, (inputs, targets) in enumerate(micro_batches, 1):
            with reducing(self.wrapped, last=i == len(micro_batches)):
                loss += self._forward_backward(inputs, targets, len(micro_batches))
        total = self.world.sum(loss)
        with self.timed("optimizer"):
            norm, skipped = self._apply_gradient(step, total, limits)
        figures = torch.stack([norm.to(total.device), total, skipped.to(total.device)])
        return StepResult(rate, limits, Readout(figures, self.world.watchdog.wait), self.world.size)

    def contents(
        self,
        state: TrainState,
        copies: dict[str, Tensor] | None = None,
    ) -> Contents:
        """What this rank saves at `state`; copies: as checkpoint.contents()."""
        moments = optim.named_state(self.model, self.optimizer)
        averages = {} if self.average is None else self.average.weights
        return checkpoint.contents(
            state, self.model, moments, self.world.is_rank0, copies, averages
        )

    def evaluate(self, evaluator: Evaluator) -> Evaluation:
        """What `evaluator` says of the model as it is; all ranks together."""
        found = evaluator(self.model)
        reshard(self.model)
        return found

    def evaluate_average(self, evaluator: Evaluator) -> Evaluation | None:
        """What `evaluator` says of the averaged weights; None where there are none."""
        if self.average is None or not self.average.weights:
            return None
        with self.average.in_place_of_weights():
            return self.evaluate(evaluator)

    def _settle_buckets(self) -> None:
        """Make one backward pass for nothing, so that DDP has ordered its buckets.

        DDP orders them anew after the first backward pass, and the order of a sum over more than
        two ranks follows them: the first step of a resumed run would be rounded otherwise.
        """
        shape = self.layout.batch_size, self.config.block_size
        # two tensors: a model that is compiled for one in both places is compiled again for a step
        inputs, targets = torch.zeros((2, *shape), dtype=torch.int64, device=self.world.device)
        self._forward_backward(inputs, targets, 1)
        self._drop_gradients()

    def _forward_backward(self, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """Add the gradient of this micro-batch's share of the loss; returns the share, a scalar."""
        with (
            self.timed("forward"),
            autocast(self.world.device, self.layout.autocast_dtype(self.dtype)),
        ):
            _, loss = self.wrapped(inputs, targets)
        with self.timed("backward"):
            self.scaler.scale(loss / count).backward()
        return loss.detach() / count

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not keeps_gradients(self.wrapped))

    def _apply_gradient(self, step: int, total: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """Clip the gradient and make the optimizer's step; the gradient's norm, and 1 for no step.

        Both are scalars. total: the ranks' losses, summed up. Whether there is a step is decided on
        the device, by what is the same on all ranks: all of them skip it, or none.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self._clip_gradient()
        found_inf = (~norm.isfinite()).float()
        if self.config.on_spike == "skip":
            loss = (total / self.world.size).to(norm.device)
            spiked = (norm > limits.grad_norm) | (loss > limits.loss)
            # ranks that round otherwise do not judge otherwise
            found_inf = self.world.sum(found_inf.logical_or(spiked).float()).sign()
        if self.average is not None:
            self.average.begin()
        optim.step_unless(found_inf, self.optimizer)
        if self.average is not None:
            self.average.update(step, found_inf)
        if self.scaler.is_enabled():
            # what it found itself may be of this rank's shards alone
            for found in self.scaler._found_inf_per_device(self.optimizer).values():
                found.copy_(found_inf)
            self.scaler.update()  # lowers its scale where the gradient was not finite
        self._drop_gradients()
        return norm, found_inf

    def _clip_gradient(self) -> Tensor:
        """nn.utils.clip_grad_norm_(): clip the gradient's norm; returns it, as it was before.

        On a CPU, where it is known by now, a norm that need not be clipped multiplies nothing by 1.
        """
        parameters, grad_clip = list(self.model.parameters()), self.config.grad_clip or math.inf
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        total = whole(norm)
        if not (total.device.type == "cpu" and (grad_clip / (total + 1e-6)).item() >= 1):
            nn.utils.clip_grads_with_norm_(parameters, grad_clip, norm)
        return total


def seed(device: torch.device, value: int) -> None:
    """Seed what draws on `device`.

    torch.manual_seed() looks for every kind of device: a hundredth of a small model's step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(value)
    else:
        torch.manual_seed(value)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random in one step of one rank.

    A resumed run draws what the uninterrupted one drew.
    """
    return (
        int.from_bytes(
            hashlib.sha256(f"dropout/{seed}/{step}/{rank}".encode()).digest()[:8], "little"
        )
        >> 1
    )
