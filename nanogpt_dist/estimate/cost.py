"""What a training costs in energy and money.

Energy is the boards' limit of power over the whole time, times what the building takes for each
watt of a machine (PUE); hosts and switches are not in it. A limit is an upper bound: trainings of
large products come close to it.
"""

from dataclasses import dataclass

from nanogpt_dist.estimate.accelerators import Accelerator

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Cost:
    """gpu_hours: of all of them. energy_kwh, price: None where power, or a price, is not known."""

    gpu_hours: float
    energy_kwh: float | None
    price: float | None


def cost(
    device: Accelerator,
    ranks: int,
    seconds: float,
    pue: float = 1.0,
    price_per_hour: float | None = None,
) -> Cost:
    """The Cost of so many devices for so long; price_per_hour: of one of them."""
    hours = ranks * seconds / 3600
    watts = device.power_watts
    energy = None if watts is None else ranks * watts * seconds * pue / JOULES_PER_KWH
    return Cost(hours, energy, None if price_per_hour is None else hours * price_per_hour)
