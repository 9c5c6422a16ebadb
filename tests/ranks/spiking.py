"""Run under torchrun by test_spikes.py: `spiking.py STRATEGY ON_SPIKE DATA RUN`."""

import sys
from pathlib import Path

from nanogpt_dist import api
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from tests.nanogpt_dist.small import tiny
from tests.nanogpt_dist.spiking import AT_STEP, SETTINGS, poison


def main(strategy: str, on_spike: str, data: str, run: str) -> None:
    poison(AT_STEP)
    changes = {**SETTINGS, "strategy": strategy, "on_spike": on_spike}
    config, stop = tiny(Path(data), Path(run), **changes), StopRequest()
    with api.connected(config, stop) as world:
        train(config, world, stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
