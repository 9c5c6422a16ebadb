"""Spikes: a loss, or a gradient's norm, that stands out of the steps before it. No torch.

Judged by the median of the last WINDOW finite ones and by their noise: the median of
|value − median|, times 1.4826, is the standard deviation of a normal noise, and a few wild values
do not move it. Both are equal on all ranks, and travel with the checkpoint: a resumed run judges as
an undisturbed one.

Chowdhery et al. 2022, "PaLM", §5.1: go back about a hundred steps and leave out the batches around
the spike. The same batches do no harm elsewhere: it takes both, them and the weights of then.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_dist.checkpoint import TrainState

WINDOW = 64  # steps that are looked back on
FEWEST = 32  # of them, below which nothing is judged: at first the loss falls from step to step
NORMAL = 1.4826  # standard deviation over MAD, of a normal noise
# A loss: above the median by so many deviations, and by this part of it, where there is hardly any
# noise. A norm: by more, and of its logarithm, since small batches have some of 100 times as much;
# by 10 to 1,000 times the median.
LOSS_DEVIATIONS, LEAST_LOSS = 8.0, 0.1
NORM_DEVIATIONS, LEAST_NORM, MOST_NORM = 20.0, math.log(10), math.log(1000)
SMALLEST = 1e-30  # norm that is remembered: 0 has no logarithm


@dataclass(frozen=True)
class Limits:
    """What a step's loss (nats/token) and gradient's norm may be at most; infinite: not judged."""

    loss: float = math.inf
    grad_norm: float = math.inf

    def told(self, loss: float, grad_norm: float) -> str:
        """What of a spike stands out, and of which limit."""
        parts = [("loss", loss, self.loss, ".4f"), ("norm", grad_norm, self.grad_norm, ".2f")]
        return ", ".join(
            f"{name} {value:{form}} where {limit:{form}} is the most"
            for name, value, limit, form in parts
            if value > limit
        )

    def exceeded_by(self, loss: float, grad_norm: float) -> bool:
        """Whether these are a spike. What is not finite is none: it has a rule of its own."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        return finite and (loss > self.loss or grad_norm > self.grad_norm)


def limits(state: "TrainState") -> Limits:
    """Of the next step, by the ones before it."""
    if len(state.losses) < FEWEST:
        return Limits()
    median, deviation = _median_and_deviation(state.losses)
    loss = median + max(LOSS_DEVIATIONS * deviation, LEAST_LOSS * abs(median))
    median, deviation = _median_and_deviation([math.log(norm) for norm in state.grad_norms])
    above = min(max(NORM_DEVIATIONS * deviation, LEAST_NORM), MOST_NORM)
    return Limits(loss, math.exp(median + above))


def _median_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    median = statistics.median(values)
    return median, NORMAL * statistics.median([abs(value - median) for value in values])


def remember(
    state: "TrainState",
    loss: float,
    grad_norm: float,
    *,
    skipped: bool = False,
    begins_anew: bool = False,
) -> None:
    """Let a step's results be looked back on, where they are finite and it was not skipped.

    begins_anew: its batches, or their windows, are the first of another shape, with another loss.
    """
    if begins_anew:
        state.losses = state.grad_norms = ()
    if not skipped and math.isfinite(loss) and math.isfinite(grad_norm):
        state.losses = (*state.losses, loss)[-WINDOW:]
        state.grad_norms = (*state.grad_norms, max(grad_norm, SMALLEST))[-WINDOW:]
