"""Run under torchrun by test_resume.py: `lagging.py DATA RUN`.

The last rank does not see the newest checkpoint; the run goes on from it on all ranks.
"""

import sys
from pathlib import Path
from typing import Any

from nanogpt_dist import api, storage
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import steps
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave

if __name__ == "__main__":
    data, run = map(Path, sys.argv[1:])
    config, stop, made = tiny(data, run, max_iters=8), StopRequest(), []
    step, listed = TrainStep.step, steps.list_steps

    def noting(self: TrainStep, number: int, *rest: Any) -> Any:
        made.append(number)
        return step(self, number, *rest)

    with api.connected(config, stop) as world:
        train(config, world, stop)
        TrainStep.step = noting  # type: ignore[method-assign]
        if world.rank == world.size - 1:
            steps.list_steps = storage.list_steps = lambda folder: listed(folder)[1:]
        train(config.model_copy(update={"max_iters": 12}), world, stop)
        assert made == [8, 9, 10, 11], made
        leave()
