"""Replace this process by a new one of the same command, as the fall-back of auto_batch_size does.

What a process holds goes with it: memory in pieces, a device's context, connections that other
ranks wait at. Its id stays, so that torchrun does not notice. No torch.
"""

import contextlib
import os
import sys
from typing import NoReturn

TIMES = "NANOGPT_FALL_BACKS"  # how often this process has started itself again, with less


def times() -> int:
    """How often this process has started itself again: all ranks of a run as often."""
    told = os.environ.get(TIMES, "0")
    return int(told) if told.isdecimal() else 0


def start_again() -> NoReturn:
    """Run this process's command line anew, from its first line on; from any thread."""
    os.environ[TIMES] = str(times() + 1)
    for name in os.listdir("/dev/fd"):
        # torch's connections are inherited otherwise, and do not break
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
