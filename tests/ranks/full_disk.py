"""Run under torchrun by test_async_save.py: rank 1 can write but a few KB from its first step on;
each tells how it ended.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

from nanogpt_dist.distributed.world import connect
from nanogpt_dist.errors import StorageError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave

if __name__ == "__main__":
    folder, corpus = Path(sys.argv[1]), Path(sys.argv[2])
    made = []
    update = TrainStep.step

    def limited(self: TrainStep, step: int, *rest: Any) -> Any:
        made.append(step + 1)
        if self.world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return update(self, step, *rest)

    TrainStep.step = limited  # type: ignore[method-assign]
    with connect("cpu", timeout_s=60) as world:
        config = tiny(
            corpus, folder / "run", strategy="fsdp", async_save=True, save_interval=2, max_iters=40
        )
        config = config.model_copy(update={"eval_interval": 40})
        try:
            train(config, world, StopRequest())
            ended: list[object] = []
        except StorageError as error:
            ended = [made[-1], str(error).split(":")[0] + ":" + str(error).split(":")[1]]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / f"rank{world.rank}.json").write_text(json.dumps(ended))
    leave()
