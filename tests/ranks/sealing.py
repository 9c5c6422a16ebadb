"""Run under torchrun by test_state.py: `sealing.py FOLDER`.

The last rank writes its part of a checkpoint late: when it is sealed already, or a second later.
Then one rank cannot write, cannot seal, or has weights that are not finite: all raise its error.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.checkpoint import TrainState, state
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import connect, local_part
from nanogpt_dist.errors import ConfigError, StorageError
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave


def fail(*_: object) -> NoReturn:
    """In place of a function that meets a full disk."""
    raise StorageError("disk full: made up")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    checkpoints = folder / "checkpoints"
    write = state.write

    def write_late(*given: Any) -> None:
        deadline = time.monotonic() + 1
        while not storage.list_steps(checkpoints) and time.monotonic() < deadline:
            time.sleep(0.01)
        write(*given)

    with connect("cpu", timeout_s=60, group=True) as world:
        if world.rank == world.size - 1:
            state.write = write_late
        config = tiny(folder, folder / "run", strategy="fsdp", vocab_size=257)
        layout = plan_layout(config, world, training_bytes(config))
        train_step = TrainStep(config, world, layout, torch.float32)

        def save(step: int) -> None:
            mine = train_step.contents(TrainState(step=step))
            checkpoint.save(world, checkpoints, mine, config, tokenizers.byte(), {})

        save(3)
        is_last = world.rank == world.size - 1
        for module, name, fails in ((state, "write", is_last), (storage, "seal", world.is_rank0)):
            plain = getattr(module, name)
            setattr(module, name, fail if fails else plain)
            with pytest.raises(StorageError, match="made up"):
                save(4)
            setattr(module, name, plain)
        if is_last:
            local_part(next(train_step.model.parameters()).detach()).fill_(math.nan)
        with pytest.raises(ConfigError, match="weights are not finite at step 4"):
            save(4)
    leave()
