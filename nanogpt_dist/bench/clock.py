"""Clocks: seconds of named parts of the work, their spread, and a trace of it."""

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from nanogpt_dist.devices import synchronize
from nanogpt_dist.storage.durable import storage_errors

SILENT = "6"  # above all levels of the profiler's own log


class Phases:
    """phases(name) is a block whose time is added to milliseconds[name].

    The device has ended its work at both ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        synchronize(self.device)
        start = time.perf_counter()
        with torch.profiler.record_function(name):  # its name in a trace
            yield
            synchronize(self.device)
        self.milliseconds[name] += 1e3 * (time.perf_counter() - start)

    def each(self, count: int) -> dict[str, float]:
        """Milliseconds of one of `count` pieces of work."""
        return {name: value / count for name, value in self.milliseconds.items()}


def spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest, in milliseconds."""
    return tuple(1e3 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))  # type: ignore[return-value]


def profiler(device: torch.device) -> torch.profiler.profile:
    """What records every operation of the block that it opens."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    else:  # where it has nothing to say but that it starts and stops
        os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    return torch.profiler.profile(activities=activities, acc_events=True)


def communication_ms(profile: torch.profiler.profile) -> float:
    """Milliseconds of the collectives that a profiler() recorded, most of it beside other work."""
    events = [event for event in profile.key_averages() if event.key.startswith(("gloo:", "nccl:"))]
    return sum(event.device_time_total or event.cpu_time_total for event in events) / 1e3


def write_trace(profile: torch.profiler.profile, folder: Path, name: str) -> Path:
    """Write a trace by the name that TensorBoard's profiler looks for; Perfetto opens it, too.

    Raises StorageError.
    """
    path = folder / f"{name}.pt.trace.json"
    with storage_errors(path):
        profile.export_chrome_trace(str(path))
    return path
