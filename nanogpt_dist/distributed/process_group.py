"""What torch's process groups need around them: standard output, timeouts, NCCL's defaults, an end.

Sources: PyTorch, torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp (ncclCommWatchdog,
handleException); gloo/rendezvous/context.cc (connectFullMesh).
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

# by which NCCL's own patience, after which it aborts the process, is longer than the watchdog's
NCCL_MARGIN_S = 60
ABANDON_S = 10.0  # for NCCL to abort what goes on on the device


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """A block in which a process group is made, of which gloo tells on standard output.

    Its words go to standard error: a command's own output may be JSON. Written in C++, they pass by
    sys.stdout.
    """
    try:
        kept = os.dup(1)
    except OSError:  # closed: nothing can be written there
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def set_nccl_defaults(ends_itself: bool) -> None:
    """Set how torch treats NCCL's errors, where the environment does not; before a group is made.

    ends_itself: the watchdog ends this process where another rank is gone. torch, which aborts it
    as soon as NCCL sees a connection break, would be faster, and would not say which rank it was.
    What NCCL was doing stays undone on the device: nothing goes on with half a sum.
    """
    # its flag that asks for dumps outlives a restart of the ranks, and would end the new ones
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    if ends_itself:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")


def set_timeout(group: dist.ProcessGroup | None, device: torch.device, seconds: float) -> None:
    """Of what begins from now on in `group`: on the CPU by gloo, on a GPU by NCCL."""
    assert group is not None
    margins = {"cpu": 0, "cuda": NCCL_MARGIN_S} if device.type == "cuda" else {"cpu": 0}
    for kind, margin in margins.items():
        backend = group._get_backend(torch.device(kind))
        if hasattr(backend, "_set_default_timeout"):  # as torch's own two
            backend._set_default_timeout(timedelta(seconds=seconds + margin))


def abandon(device: torch.device) -> None:
    """Leave a process group whose ranks may be gone, in ABANDON_S at most.

    NCCL's is aborted: to destroy it would be to wait for what `device` has still to do.
    """
    leave = dist.destroy_process_group
    if device.type == "cuda":
        leave = dist.distributed_c10d._abort_process_group
    leaving = threading.Thread(target=leave, name="abandon", daemon=True)
    leaving.start()
    leaving.join(ABANDON_S)
