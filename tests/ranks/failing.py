"""Plays `nanogpt` with a process group that cannot be destroyed, as one of NCCL's whose peers are
gone, and with a fault in the third step on rank 1, one of FAULT:

bug      a ValueError
killed   it dies of SIGKILL
memory   the GPU has no memory left
stop     a request to stop, which all ranks agree on
"""

import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from nanogpt_dist.__main__ import main
from nanogpt_dist.training.step import TrainStep

MEMORY = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 1 has a total capacity of 79.11 GiB of "
    "which 1.31 GiB is free. Including non-PyTorch memory, this process has 77.79 GiB memory in "
    "use. Of the allocated memory 75.10 GiB is allocated by PyTorch, and 1.20 GiB is reserved by "
    "PyTorch but unallocated."
)

update = TrainStep.step


def faulty(self: TrainStep, step: int, *rest: Any) -> Any:
    if self.world.rank == 1 and step == 2:
        if os.environ["FAULT"] == "bug":
            raise ValueError("the disk is on fire")
        if os.environ["FAULT"] == "memory":
            if self.world.device.type == "cuda":
                torch.empty(2**40, device=self.world.device)
            raise torch.OutOfMemoryError(MEMORY)
        killed = os.environ["FAULT"] == "killed"
        os.kill(os.getpid(), signal.SIGKILL if killed else signal.SIGTERM)
    return update(self, step, *rest)


def hang(group: object = None) -> None:
    print("destroy_process_group was called", file=sys.stderr, flush=True)
    time.sleep(10**6)


if __name__ == "__main__":
    TrainStep.step = faulty  # type: ignore[method-assign]
    if os.environ["FAULT"] != "stop":
        dist.destroy_process_group = hang  # type: ignore[assignment]
    sys.exit(main())
