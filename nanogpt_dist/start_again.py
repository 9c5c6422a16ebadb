"""Replace this process by a new one of the same command, as the fall-back of auto_batch_size does.

What a process holds goes with it: memory in pieces, a device's context, connections that other
ranks wait at. Its id stays, so that torchrun does not notice. No torch.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from typing import NoReturn

MOST_FILES = 4096  # descriptors that are looked at where the system does not list those in use
IGNORED = 1  # SIG_IGN, in signal.h
TIMES = "NANOGPT_FALL_BACKS"  # how often this process has started itself again, with less


def times() -> int:
    """How often this process has started itself again: all ranks of a run as often."""
    told = os.environ.get(TIMES, "0")
    return int(told) if re.fullmatch("[0-9]{1,9}", told) else 0


def start_again() -> NoReturn:
    """Run this process's command line anew, from its first line on; from any thread."""
    os.environ[TIMES] = str(times() + 1)
    for number in _open_files():
        # torch's connections are inherited otherwise, and do not break
        with contextlib.suppress(OSError):
            os.set_inheritable(number, False)
    # A handler goes with the process, and without one SIGUSR1 kills; signal.signal() is for the
    # main thread alone.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGUSR1), IGNORED)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_files() -> list[int]:
    """Descriptors that may be in use, but for standard input, output and error."""
    try:
        return [int(name) for name in os.listdir("/dev/fd") if int(name) > 2]
    except OSError:
        return list(range(3, MOST_FILES))
