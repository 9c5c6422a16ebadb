"""Runs in which something goes wrong at a step: what the tests of spikes share."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from nanogpt_dist.data.batches import Batches
from nanogpt_dist.training import optim

AT_STEP = 60  # of SETTINGS' 72
SETTINGS: dict[str, Any] = {
    "max_iters": 72,
    "eval_interval": 1000,
    "save_interval": 16,
    "log_interval": 1,
    "keep_checkpoints": 9,
}
_read, _set_rates = Batches.of, optim.set_learning_rates


def poison(*steps: int) -> None:
    """Let each rank read bytes that no text has in these steps, from 1; none: as it was."""

    def poisoned(self: Batches, step: int) -> Iterator[tuple[Any, Any]]:
        for inputs, targets in _read(self, step):
            if step + 1 in steps:
                draw = np.random.default_rng([step, self.rank])
                inputs, targets = draw.integers(128, self.split.n_vocab, (2, *inputs.shape))
            yield inputs, targets

    Batches.of = poisoned if steps else _read  # type: ignore[method-assign]


def raise_rates(step: int | None, factor: float = 100.0) -> None:
    """Let the rates be `factor` times as high from `step` on, which counts from 1; None: never."""

    def raised(optimizer: Any, made: int, config: Any) -> float:
        rate = _set_rates(optimizer, made, config)
        if made + 1 >= step:  # type: ignore[operator]
            for group in optimizer.param_groups:
                group["lr"] *= factor
        return rate

    optim.set_learning_rates = _set_rates if step is None else raised  # type: ignore[assignment]
