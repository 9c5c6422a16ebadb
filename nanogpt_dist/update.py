"""One update of the weights: forward and backward over the global batch, one all-reduce, clip, AdamW.

Shape letters: B sequences in a micro-batch, T = block_size.
"""

import contextlib
import hashlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_dist import checkpoint
from nanogpt_dist.batches import Tokens
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import autocast
from nanogpt_dist.distributed import World
from nanogpt_dist.model import GPT
from nanogpt_dist.optim import learning_rate, make_optimizer


@dataclass(frozen=True)
class Update:
    """What one update was: the loss is the mean over the whole global batch, in nats/token, on every rank."""

    loss: float
    grad_norm: float
    learning_rate: float
    finite: bool  # otherwise weights and optimizer were left as they were


MAX_SKIPPED = 3  # updates in a row whose gradient was not finite
MAX_SKIPPED_FP16 = 20  # the scaler starts at 2^16 and halves at each of them


class Updater:
    """A model, its optimizer, and what this world wraps around them."""

    def __init__(self, config: TrainConfig, world: World, dtype: torch.dtype) -> None:
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        self.config, self.world, self.dtype = config, world, dtype
        self.model = GPT(config.architecture()).init_weights(config.seed).to(world.device)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
        self.max_skipped = MAX_SKIPPED_FP16 if self.scaler.is_enabled() else MAX_SKIPPED
        self.wrapped = self._wrap()

    def _wrap(self) -> nn.Module:
        wrapped: nn.Module = self.model
        compile_it = self.config.compile if self.config.compile is not None else self.world.device.type == "cuda"
        if compile_it:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=ids, gradient_as_bucket_view=True)
        return wrapped

    def load(self, saved: Path, facts: dict[str, Any]) -> None:
        """Go on from a verified checkpoint. Raises BadDataError where it is of another architecture."""
        checkpoint.load_weights(saved, self.model)
        checkpoint.load_optimizer(saved, self.model, self.optimizer)
        if self.scaler.is_enabled() and facts.get("scaler"):
            self.scaler.load_state_dict(facts["scaler"])

    def update(self, step: int, batches: list[tuple[Tokens, Tokens]]) -> Update:
        """Make the update that follows `step` updates from this rank's micro-batches ((B, T), (B, T)).

        A gradient that is not finite changes nothing. It has been reduced by then, so all ranks see the same one.
        """
        torch.manual_seed(dropout_seed(self.config.seed, step, self.world.rank))
        rate = learning_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = torch.zeros((), device=self.world.device)
        for i, (x, y) in enumerate(batches, 1):
            with self._reducing_only(last=i == len(batches)):
                loss += self._forward_backward(x, y, len(batches))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf).item()
        finite = math.isfinite(norm)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()  # lowers its scale where a gradient was not finite
        self.optimizer.zero_grad(set_to_none=True)
        mean = self.world.sum(loss).item() / self.world.size
        return Update(mean, norm, rate, finite)

    def _forward_backward(self, x: Tokens, y: Tokens, count: int) -> Tensor:
        """Add the gradient of this micro-batch's share of the loss; returns the share, a scalar."""
        inputs, targets = self._to_device(x), self._to_device(y)
        with autocast(self.world.device, self.dtype):
            _, loss = self.wrapped(inputs, targets)
        self.scaler.scale(loss / count).backward()
        return loss.detach() / count

    def _to_device(self, ids: Tokens) -> Tensor:
        tensor = torch.from_numpy(ids)
        if self.world.device.type == "cuda":
            return tensor.pin_memory().to(self.world.device, non_blocking=True)
        return tensor.to(self.world.device)

    def _reducing_only(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are summed over the ranks in the last backward pass of an update, once."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random in one update of one rank: a resumed run draws what the uninterrupted one drew."""
    return int.from_bytes(hashlib.sha256(f"dropout/{seed}/{step}/{rank}".encode()).digest()[:8], "little") >> 1
