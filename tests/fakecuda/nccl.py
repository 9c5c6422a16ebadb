"""The backend "nccl" of torch.distributed; native/collectives.cpp does the work, by gloo."""

import time
from types import ModuleType
from typing import Any

from torch._C._distributed_c10d import ProcessGroupGloo

from tests.fakecuda.library import lib, setting


class Options:
    """As ProcessGroupNCCL.Options."""

    def __init__(self, is_high_priority_stream: bool = False) -> None:
        self.is_high_priority_stream = is_high_priority_stream
        self._timeout: Any = None
        self.global_ranks_in_group: list[int] = []
        self.group_name = ""


class ProcessGroupNCCL(ProcessGroupGloo):
    """A group of its own ranks under NCCL's name: its collectives are those of the group's gloo.

    To shut it down waits for the others, as NCCL may.
    """

    Options = Options

    def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
        super().__init__(store, rank, size, timeout=options._timeout)
        self.store, self.ranks = store, size
        self.limit_s = options._timeout.total_seconds()
        patience_ms = int(1e3 * float(setting("PATIENCE_S", "0")))
        lib.fake_collectives(int(1e3 * self.limit_s), patience_ms)

    def abort(self) -> None:
        """Leave at once, whatever the others do."""

    def _group_start(self) -> None:
        """Several aborts are one to NCCL."""

    def _group_end(self) -> None:
        """Several aborts are one to NCCL."""

    def shutdown(self) -> None:
        """Wait until all ranks have come here; for ever where one is gone."""
        lib.fake_wait_if_stuck()
        try:
            self.store.add("left", 1)
            deadline = time.monotonic() + self.limit_s
            while self.store.add("left", 0) < self.ranks and time.monotonic() < deadline:
                time.sleep(0.01)
        except RuntimeError:  # the store's host has left: it saw all of them
            pass


def install(module: ModuleType) -> None:
    """Put it in the place of what a CPU build lacks."""
    module.ProcessGroupNCCL = ProcessGroupNCCL
    module.is_nccl_available = lambda: True
    module._NCCL_AVAILABLE = True
