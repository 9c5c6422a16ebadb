"""Run under torchrun by test_replicas.py: `flipping.py CHANGES(JSON) RANK DATA RUN`.

After step 6 one bit of what rank RANK holds flips: each time in another tensor. All ranks end with
the error that the first has; rank 0 prints it.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import api
from nanogpt_dist.distributed.world import local_part
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import named_state
from nanogpt_dist.training.replicas import INTEGERS
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave


def flip(train_step: TrainStep) -> None:
    state = named_state(train_step.model, train_step.optimizer)
    tensors = [*train_step.model.parameters(), *state.values()]
    parts = [part for each in tensors if (part := local_part(each.detach())).numel()]
    draw = random.Random(len(parts))
    part = draw.choice(parts)
    bits = part.view(-1).view(INTEGERS[part.element_size()])
    place, bit = draw.randrange(len(bits)), draw.randrange(8 * part.element_size() - 2)
    bits[place] ^= 1 << bit


def main(changes: str, rank: str, data: str, run: str) -> None:
    made = TrainStep.step

    def flipping(self: TrainStep, step: int, *rest: Any) -> Any:
        result = made(self, step, *rest)
        if step + 1 == 6 and self.world.rank == int(rank):
            flip(self)
        return result

    TrainStep.step = flipping  # type: ignore[method-assign]
    config, stop = tiny(Path(data), Path(run), **json.loads(changes)), StopRequest()
    with api.connected(config, stop) as world:
        with pytest.raises(BadDataError) as raised:
            train(config, world, stop)
        assert raised.value.agreed
        if world.is_rank0:
            print(f"told: {raised.value}", file=sys.stderr)
        leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
