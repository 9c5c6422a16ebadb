"""A rank that waits for a device which never gets ready, while rank 1 goes one of several WAYS.

killed   it dies of SIGKILL
fails    it raises an error
hangs    it waits as well
done     it leaves in order, and the others are ready two seconds later
stuck    it dies of SIGKILL, and the others are where no poll is: in a read of the device, or NCCL
stopped  it is stopped by SIGSTOP, and the others are where no timeout is: in a save
unwinds  it raises an error, and never comes to the end of closing what it has open

Prints the error and the seconds of the wait as JSON, unless it is ended by its watchdog.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

from cli.ending import exit_with
from nanogpt_dist.distributed import watchdog
from nanogpt_dist.distributed.world import World, connect

TIMEOUT_S = 3


def main(way: str) -> None:
    begun = time.monotonic()
    error: BaseException | None = None
    watchdog.GRACE_S = watchdog.UNWIND_S = 3.0
    try:
        with connect(
            "cpu", TIMEOUT_S if way in ("hangs", "stopped") else 60, exit_with=exit_with
        ) as world:
            world.any(False)  # all are there
            world.settle()
            begun = time.monotonic()
            endless = way == "unwinds" and world.rank == 1
            with endless_closing() if endless else contextlib.nullcontext():
                wait(world, way)
    except Exception as raised:
        error = raised
    told = {"error": str(error), "seconds": time.monotonic() - begun}
    print(json.dumps(told), flush=True)
    os._exit(0)


@contextlib.contextmanager
def endless_closing() -> Iterator[None]:
    try:
        yield
    finally:
        time.sleep(10**6)


def wait(world: World, way: str) -> None:
    begun = time.monotonic()
    if world.rank == 1 and way in ("killed", "stuck"):
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == 1 and way in ("fails", "unwinds"):
        error = ValueError("the disk is on fire")
        raise world.watchdog.leave(error)
    if world.rank == 1 and way == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if way in ("stuck", "stopped"):
        time.sleep(10**6)
    if way != "done":
        world.watchdog.wait(lambda: False)
    elif world.rank != 1:
        world.watchdog.wait(lambda: time.monotonic() > begun + 2)


if __name__ == "__main__":
    main(sys.argv[1])
