"""A rank that waits for a device which never gets ready, while rank 1 goes one of several WAYS.

killed   it dies of SIGKILL
fails    it raises an error
hangs    it waits as well
done     it leaves in order, and the others are ready two seconds later

Prints the error and the seconds of the wait as JSON.
"""

import json
import os
import signal
import sys
import time

from nanogpt_dist.distributed.world import World, connect

TIMEOUT_S = 3.0


def main(way: str) -> None:
    begun = time.monotonic()
    error: BaseException | None = None
    try:
        with connect("cpu", timeout_s=60) as world:
            if way == "hangs":
                world.watchdog.timeout_s = TIMEOUT_S
            world.any(False)  # all are there
            begun = time.monotonic()
            wait(world, way)
    except Exception as raised:
        error = raised
    told = {"error": str(error), "seconds": time.monotonic() - begun}
    print(json.dumps(told), flush=True)
    os._exit(0)


def wait(world: World, way: str) -> None:
    begun = time.monotonic()
    if world.rank == 1 and way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == 1 and way == "fails":
        raise ValueError("the disk is on fire")
    if way != "done":
        world.watchdog.wait(lambda: False)
    elif world.rank != 1:
        world.watchdog.wait(lambda: time.monotonic() > begun + 2)


if __name__ == "__main__":
    main(sys.argv[1])
