"""Energy and money."""

import pytest

from nanogpt_dist.estimate.accelerators import accelerator
from nanogpt_dist.estimate.cost import cost


def test_eight_devices_for_an_hour() -> None:
    found = cost(accelerator("h100-80gb"), 8, 3600, pue=1.25, price_per_hour=2.5)
    assert found.gpu_hours == 8
    assert found.energy_kwh == pytest.approx(8 * 0.7 * 1.25)
    assert found.price == 20


def test_what_is_not_known_is_not_said() -> None:
    found = cost(accelerator("cpu", peak_tflops=1.0), 1, 60)
    assert (found.energy_kwh, found.price) == (None, None)
