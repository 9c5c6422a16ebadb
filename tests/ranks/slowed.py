"""A training whose rank 1 is slowed, until that is told of: slowed.py STRATEGY HOW DATA RUN."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nanogpt_dist import api
from nanogpt_dist.data.batches import Batches
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training import stragglers
from nanogpt_dist.training.loop import train
from tests.nanogpt_dist.small import events_of, tiny

STEPS = 600
# whose blocks' passes, which are a rank's own work, are nearly all of a step: a pause falls on them
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 8}
PAUSES = """
import os, signal, sys, time
pid = int(sys.argv[1])
while os.getppid() == pid:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.06)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.02)
"""


def slow(how: str) -> None:
    """Slow this process from now on."""
    if how == "paused":  # three quarters of the time, by a child that ends with it
        subprocess.Popen([sys.executable, "-c", PAUSES, str(os.getpid())])
    else:
        assert how == "disk"
        read = Batches.of

        def slowly(self: Batches, step: int) -> Any:
            time.sleep(0.2)  # longer than a step computes, which would hide it
            return read(self, step)

        Batches.of = slowly  # type: ignore[method-assign]


def stop_once_told(run: Path, stop: StopRequest) -> None:
    while not any(event["event"] == "straggler" for event in events_of(run)):
        time.sleep(0.1)
    stop.ask()


def main(strategy: str, how: str, data: str, run: str) -> None:
    stragglers.WINDOW_S = 0.5
    changes = {"strategy": strategy, "max_iters": STEPS, "eval_interval": 10**6}
    if how == "paused":
        changes |= MODEL
    config = tiny(Path(data), Path(run), log_interval=2, **changes)
    stop = StopRequest()
    told = threading.Thread(target=stop_once_told, args=(Path(run), stop), daemon=True)
    with api.connected(config, stop) as world:
        if world.rank == 1:
            slow(how)
        if world.rank == 0:
            told.start()
        train(config, world, stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
