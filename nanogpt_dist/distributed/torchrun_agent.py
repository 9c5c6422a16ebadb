"""torchrun, that tells of a rank's death in a line instead of in forty.

python -m nanogpt_dist.distributed.torchrun_agent …
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.run import main as torchrun

from nanogpt_dist.errors import Exit

# in --rdzv-conf: who offers the place where the nodes meet, and who comes there
HOST, GUEST = "is_host=1", "is_host=0"

DEBUG = "NANOGPT_DEBUG"  # as --debug sets it


def main() -> int:
    """Run torchrun with this process's arguments; its exit code.

    A rank that fails by itself has said why.
    """
    if not os.environ.get(DEBUG):
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        _run(sys.argv[1:])
    except RendezvousConnectionError:  # the launcher knows the address, and says so
        return Exit.IO_ERROR
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            first = failure is error.get_first_failure()[1]
            if failure.exitcode < 0 and first:
                print(
                    f"nanogpt: rank {rank} (pid {failure.pid}) was killed by "
                    f"{failure.signal_name()}",
                    file=sys.stderr,
                    flush=True,
                )
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    """Run torchrun; of several launchers on one machine only the first hosts the rendezvous."""
    try:
        torchrun(arguments)
    except RendezvousConnectionError:
        if not any(HOST in argument for argument in arguments):
            raise
        torchrun([argument.replace(HOST, GUEST) for argument in arguments])


if __name__ == "__main__":
    sys.exit(main())
