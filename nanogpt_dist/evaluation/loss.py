"""Loss of a model on fixed windows of a split, on all ranks together.

The training's randomness is left alone.

Shape letters: B windows in a batch, T tokens of a window.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nanogpt_dist.data.batches import Ids, Positions, read_windows
from nanogpt_dist.devices import autocast
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.transfers import Readout, to_device


@dataclass(frozen=True)
class Windows:
    """Where to read: starts (n,) and the number of tokens to predict from each, lengths (n,)."""

    starts: Positions
    lengths: Positions


@dataclass(frozen=True)
class Evaluation:
    """The loss over `tokens` predicted tokens.

    val_loss: nats/token. standard_error: of it, over windows. bits_per_byte: of UTF-8.
    """

    val_loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    standard_error: float


def whole_split(tokens: int, block_size: int) -> Windows:
    """Windows that predict each token of a split but the first once; the last may be short."""
    if tokens < 2:
        raise BadDataError(
            f"a split with fewer than 2 tokens ({tokens}) cannot be evaluated; prepare more text, "
            "or with another --val-fraction"
        )
    starts = np.arange(0, tokens - 1, block_size, dtype=np.int64)
    return Windows(starts, np.minimum(block_size, tokens - 1 - starts))


def spread(tokens: int, block_size: int, count: int) -> Windows:
    """At most `count` of whole_split's full windows, evenly spread, the same ones every time."""
    whole = whole_split(tokens, block_size)
    full = max(1, int((whole.lengths == block_size).sum()))
    chosen = np.arange(min(count, full)) * full // min(count, full)
    return Windows(whole.starts[chosen], whole.lengths[chosen])


@dataclass(frozen=True)
class Evaluator:
    """The loss on the same windows each time, with the same figures on any number of ranks.

    byte_lengths: (V,) UTF-8 bytes of each token id, for bits per byte. batch_size: windows in one
    forward pass.
    """

    split: Ids
    windows: Windows
    byte_lengths: NDArray[np.int64]
    world: World
    batch_size: int
    dtype: torch.dtype = torch.float32

    def __call__(self, model: GPT) -> Evaluation:
        """The Evaluation of `model`, in evaluation mode; all ranks call it together."""
        was_training = model.training
        model.eval()
        losses, nbytes = self._window_losses(model)
        model.train(was_training)
        tokens, n = int(self.windows.lengths.sum()), len(losses)
        loss = float(losses.sum()) / tokens
        per_window = losses / self.windows.lengths  # (n,) nats/token
        return Evaluation(
            val_loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            bits_per_byte=float(losses.sum()) / math.log(2) / max(1, nbytes),
            tokens=tokens,
            standard_error=float(per_window.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0,
        )

    @torch.no_grad()
    def _window_losses(self, model: GPT) -> tuple[NDArray[np.float64], int]:
        """Summed loss of each window (n,), in nats, and the UTF-8 bytes of all targets together.

        Batches are the same for every number of ranks, and each rank adds its windows to zeros: the
        sums are exact. The device is waited for once, at the end.
        """
        losses = torch.zeros(len(self.windows.starts), device=self.world.device)
        nbytes = torch.zeros(1, dtype=torch.int64)
        batches = _batches(self.windows, self.batch_size)
        for batch, counts in self.world.split_over_ranks(batches):
            with self.world.raise_on_all_ranks():
                x, y = read_windows(
                    self.split, self.windows.starts[batch], int(self.windows.lengths[batch][0])
                )  # (B, T)
            [(inputs, targets)] = to_device([(x, y)], self.world.device)
            with autocast(self.world.device, self.dtype):
                logits = model.logits(inputs)  # (B, T, V)
            pairs = zip(logits, targets, strict=True)  # in float32 only one window at a time
            each = [
                F.cross_entropy(window.float(), target, reduction="sum") for window, target in pairs
            ]
            if counts:
                losses[batch] = torch.stack(each)
                nbytes += int(self.byte_lengths[y].sum())
        # in float64 only here: mps has none
        sums = Readout(losses, self.world.watchdog.wait).get().double()
        return self.world.sum(sums).numpy(), int(self.world.sum(nbytes).item())


def _batches(windows: Windows, batch_size: int) -> list[slice]:
    """Runs of at most batch_size windows of equal length."""
    n, full = len(windows.starts), int((windows.lengths == windows.lengths[0]).sum())
    batches = [slice(i, min(i + batch_size, full)) for i in range(0, full, batch_size)]
    return batches + [slice(i, i + 1) for i in range(full, n)]
