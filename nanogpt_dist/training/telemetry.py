"""What a run's time goes to between two logged steps, and which rank the others wait for."""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from nanogpt_dist.devices import reserved_bytes
from nanogpt_dist.training.gpu_sensors import GpuSensors
from nanogpt_dist.training.own_work import OwnWork
from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.training.stragglers import Slowest, Stragglers, slowest_of
from nanogpt_dist.transfers import Moment

Rows = list[list[float]]  # of each rank: seconds of its own work, for data, for communication


class Telemetry:
    """Adds up what this rank's time goes to; on rank 0 what that of all of them does.

    All ranks make it together. They tell each other in a vote that is held anyway, before a logged
    step: of the step itself they tell with the next one.
    """

    def __init__(self, train_step: TrainStep) -> None:
        self.world = train_step.world
        self.hosts = [socket.gethostname()]
        if self.world.size > 1:
            self.hosts = self.world.gather_texts(self.hosts[0])
        self._own_work = OwnWork(train_step)
        self._sensors = GpuSensors(self.world.device)
        self._stragglers = Stragglers()
        self._logged = time.perf_counter()
        self._spent = {"save": 0.0, "eval": 0.0}
        self._told: dict[int, Rows] = {}  # by the step with which it is logged
        self._forget()

    def _forget(self) -> None:
        self._steps = self._measured = 0
        self._own_s = self._communication_s = self._data_s = 0.0

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """A block that data, save or eval take of this process's time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            if what == "data":
                self._own_work.waited_for_data += seconds
            else:
                self._spent[what] += seconds

    def add_step(self, before: Moment, warm: bool) -> None:
        """Count the step whose result was read; before: when the device had made the last one.

        warm: it is not the first of its kind, which compiles and tunes. What data took while the
        device was at work was no loss.
        """
        times = self._own_work.pop()
        data_s = min(times.data_s, max(0.0, times.began - before))
        self._data_s += data_s
        self._steps += 1
        if warm and (own_s := times.own_s) is not None:
            self._measured += 1
            self._own_s += own_s + data_s
            self._communication_s += times.communication_s

    def vote(self, flags: list[bool], due: int | None) -> list[bool]:
        """World.any_of_each(); due: the next step, where it is logged: the ranks tell for it."""
        if due is None or self.world.size == 1:
            return self.world.any_of_each(*flags)
        voted, rows = self.world.vote(flags, self._take())
        if self.world.is_rank0:  # which logs it
            self._told[due] = rows
        return voted

    def _take(self) -> list[float]:
        """Since the last time: own work of a step, waiting for data, communication; 0 unknown."""
        measured = max(1, self._measured)
        row = [
            self._own_s / measured,
            self._data_s,
            self._communication_s * self._steps / measured,
        ]
        self._forget()
        return row

    def interval(self, step: int) -> tuple[dict[str, Any], Slowest | None]:
        """The figures of metrics.jsonl since the last call, and a straggler to warn of."""
        now = time.perf_counter()
        seconds, self._logged = now - self._logged, now
        alone, unknown = self.world.size == 1, [[0.0, 0.0, 0.0]] * self.world.size
        rows = [self._take()] if alone else self._told.pop(step, unknown)
        own, data, communication = zip(*rows, strict=True)
        # what is told of the steps before may be of a longer interval
        data_s = min(max(data), seconds)
        communication_s = min(sum(communication) / len(rows), seconds - data_s)
        slowest = slowest_of(own)
        temperature, clock = self._sensors.read()
        figures = {
            "time": round(time.time(), 3),
            "interval_s": seconds,
            "data_s": data_s,
            "communication_s": communication_s if alone or min(own) > 0 else None,
            "save_s": self._spent["save"],
            "eval_s": self._spent["eval"],
            "memory_reserved_bytes": reserved_bytes(self.world.device),
            "gpu_temperature_c": temperature,
            "gpu_clock_mhz": clock,
            "slowest_rank": slowest.rank if slowest else None,
            "slowest_host": self.hosts[slowest.rank] if slowest else None,
            "slowest_factor": slowest.factor if slowest else None,
        }
        self._spent = dict.fromkeys(self._spent, 0.0)
        return figures, self._stragglers.add(seconds, own)


def shares(figures: dict[str, Any], least: float = 0.05) -> str:
    """ " · data 12%" and so on: what beside computing took more than `least` of an interval."""
    seconds = figures["interval_s"]
    names = {"data": "data_s", "comm": "communication_s", "save": "save_s"}
    found = {name: (figures[key] or 0.0) / seconds for name, key in names.items()}
    return "".join(f" · {name} {share:.0%}" for name, share in found.items() if share > least)
