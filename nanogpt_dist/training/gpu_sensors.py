"""Temperature and clock of a GPU by torch's own functions, which ask NVML or AMD SMI."""

import time

import torch

LEAST_PAUSE_S = 5.0  # between two readings
PAUSE_FACTOR = 1000.0  # times as long as a reading took: they are a thousandth of the time


class GpuSensors:
    """Reads a GPU's sensors now and then; (None, None) where they cannot be read.

    torch asks NVIDIA's through the package nvidia-ml-py, which may not be there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._readable = device, device.type == "cuda"
        self._last: tuple[int | None, int | None] = (None, None)
        self._next = 0.0

    def read(self) -> tuple[int | None, int | None]:
        """Degrees Celsius, and the clock of the multiprocessors in MHz; not older than a pause."""
        start = time.perf_counter()
        if not self._readable or start < self._next:
            return self._last
        try:
            temperature, clock = torch.cuda.temperature, torch.cuda.clock_rate
            self._last = (int(temperature(self._device)), int(clock(self._device)))
        except Exception:  # of each library's own kinds
            self._readable, self._last = False, (None, None)
        end = time.perf_counter()
        self._next = end + max(LEAST_PAUSE_S, PAUSE_FACTOR * (end - start))
        return self._last
