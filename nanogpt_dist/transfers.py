"""Between the CPU and the device: token ids up, figures down, and on CUDA no wait for either.

Shape letters: M micro-batches of a step, B sequences in each, T tokens of a sequence.

Source: PyTorch's tutorial "A guide on good usage of non_blocking and pin_memory() in PyTorch".
"""

import functools
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
Pairs = Iterable[tuple[Ids, Ids]]  # inputs and targets of micro-batches, each (B, T)
Staged = list[tuple[Ids, Ids]] | Tensor  # as they are, or in pinned memory


def stager(device: torch.device) -> Callable[[Pairs], Staged]:
    """What makes a step's micro-batches ready for to_device(), in a thread that reads them."""
    return functools.partial(pin, device=device) if device.type == "cuda" else list


def pin(pairs: Pairs, device: torch.device) -> Tensor:
    """The ids of micro-batches of one shape in one piece of pinned memory: (M, 2, B, T).

    torch keeps the memory until its copy to the device has been made, then another step gets it.
    """
    torch.cuda.set_device(device)  # a thread begins on GPU 0, and would open a context there
    arrays = list(pairs)
    pinned = torch.empty((len(arrays), 2, *arrays[0][0].shape), dtype=torch.int64, pin_memory=True)
    for ids, (inputs, targets) in zip(pinned.numpy(), arrays, strict=True):
        ids[0], ids[1] = inputs, targets
    return pinned


def to_device(staged: Staged, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of each micro-batch on `device`, each (B, T).

    On CUDA by one copy for all, which nobody waits for; each is contiguous, so that a compiled
    model takes it as it is.
    """
    if device.type == "cuda":
        pinned = staged if isinstance(staged, Tensor) else pin(staged, device)
        ids = pinned.to(device, non_blocking=True)  # (M, 2, B, T)
        return [(inputs, targets) for inputs, targets in ids]
    return [
        (torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        for inputs, targets in staged
    ]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values`, which are in CPU memory, on `device`; on CUDA nobody waits for the copy."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Moment:
    """When the device has done all that it was given until now; `b - a` is in seconds.

    On CUDA that is to come, and is told by the device's own clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            with torch.cuda.device(device):
                self._event.record()
        self._time = time.perf_counter()

    def __sub__(self, earlier: "Moment") -> float:
        """Of two moments that have come."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1e3

    def has_come(self) -> bool:
        """Whether the device is there."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Return once the device is there."""
        if self._event is not None:
            self._event.synchronize()


class Readout:
    """Values of a tensor on their way from the device.

    late: whether they come while this process goes on, as on CUDA; elsewhere they are there at
    once. copied: when they are there. wait: returns once what it is given returns True, as
    Watchdog.wait() does; None: where no other rank can be lost meanwhile.
    """

    def __init__(
        self,
        values: Tensor,
        wait: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        self.late = values.is_cuda
        self._wait = wait
        if self.late:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
        else:
            self._values = values.cpu()
        self.copied = Moment(values.device)

    def get(self) -> Tensor:
        """The values, in CPU memory; waits for the device where they are not there yet."""
        if self.late:
            if self._wait is None:
                self.copied.wait()
            else:
                self._wait(self.copied.has_come)
        return self._values
