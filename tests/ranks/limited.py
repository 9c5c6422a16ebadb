"""Plays `nanogpt` with little memory, by RLIMIT_DATA: what it asks for beyond that it does not get.

LEFT=MB         left to this process when it starts, which planning can see
SHORT=RANK:MB   left to that rank when its first step begins, which planning could not see
FITS=RANK:N     that rank asks for more than there is where a micro-batch has more sequences
STOP=RANK       that rank is sent SIGTERM before its first step
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist.__main__ import main
from nanogpt_dist.memory_limits import STATUS
from nanogpt_dist.training.step import TrainStep

step = TrainStep.step


def leave(megabytes: float) -> None:
    """Let this process take so much more and no more."""
    lines = Path(STATUS).read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (now + int(megabytes * 2**20), hard))


def limited(self: TrainStep, *rest: Any) -> Any:
    rank, _, megabytes = os.environ.get("SHORT", "").partition(":")
    if megabytes and self.world.rank == int(rank):
        TrainStep.step = step  # type: ignore[method-assign]
        leave(float(megabytes))
    if os.environ.get("STOP") == str(self.world.rank):
        os.kill(os.getpid(), signal.SIGTERM)
    rank, _, fits = os.environ.get("FITS", "").partition(":")
    if fits and self.world.rank == int(rank) and self.layout.batch_size > int(fits):
        torch.empty(2**60)
    return step(self, *rest)


if __name__ == "__main__":
    # a process that has started itself again has inherited what was left to it before
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    TrainStep.step = limited  # type: ignore[method-assign]
    torch.zeros(1).sum()
    if "LEFT" in os.environ:
        leave(float(os.environ["LEFT"]))
    sys.exit(main())
