"""Ids to the device and figures back, where there is no device to wait for."""

import time

import numpy as np
import torch

from nanogpt_dist.transfers import Moment, Readout, stager, to_device

CPU = torch.device("cpu")


def test_on_a_cpu_ids_stay_where_they_are() -> None:
    rows = np.arange(12, dtype=np.int64).reshape(2, 6)
    staged = stager(CPU)(iter([(rows[:, :-1], rows[:, 1:])]))
    [(inputs, targets)] = to_device(staged, CPU)
    assert inputs.tolist() == rows[:, :-1].tolist()
    assert targets.tolist() == rows[:, 1:].tolist()
    assert np.shares_memory(inputs.numpy(), rows)


def test_on_a_cpu_values_are_there_at_once() -> None:
    def wait(ready: object) -> None:
        raise AssertionError("nothing is to be waited for")

    readout = Readout(torch.tensor([1.0, 2.0]), wait)
    assert not readout.late
    assert readout.get().tolist() == [1.0, 2.0]


def test_the_time_between_two_moments_is_in_seconds() -> None:
    first = Moment(CPU)
    time.sleep(0.02)
    assert first.has_come()
    assert 0.02 <= Moment(CPU) - first < 2
