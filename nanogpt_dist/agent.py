"""`python -m nanogpt_dist.agent …`: torchrun, that tells of a rank's death in a line instead of in forty."""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

DEBUG = "NANOGPT_DEBUG"  # as --debug sets it


def main() -> int:
    """Run torchrun with this process's arguments; its exit code. A rank that fails by itself has told why."""
    if not os.environ.get(DEBUG):
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            first = failure is error.get_first_failure()[1]
            if failure.exitcode < 0 and first:
                print(
                    f"nanogpt: rank {rank} (pid {failure.pid}) was killed by {failure.signal_name()}",
                    file=sys.stderr,
                    flush=True,
                )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
