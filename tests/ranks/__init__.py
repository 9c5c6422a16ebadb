"""Scripts that tests run in ranks of torchrun."""

import os
import sys
from typing import NoReturn


def leave() -> NoReturn:
    """End without the interpreter's teardown, in which gloo's threads now and then abort the
    process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
