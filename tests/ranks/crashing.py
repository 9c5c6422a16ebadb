"""Plays `nanogpt` with a fault: the process kills itself in the update that follows FAULT updates,
on rank 0.
"""

import os
import signal
import sys
from typing import Any

from nanogpt_dist.__main__ import main
from nanogpt_dist.training.step import TrainStep

update = TrainStep.step


def fatal(self: TrainStep, step: int, *rest: Any) -> Any:
    if step == int(os.environ["FAULT"]) and self.world.is_rank0:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, step, *rest)


if __name__ == "__main__":
    TrainStep.step = fatal  # type: ignore[method-assign]
    sys.exit(main())
