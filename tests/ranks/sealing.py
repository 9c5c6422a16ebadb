"""Run under torchrun by test_state.py: `sealing.py FOLDER`.

The last rank writes its part of a checkpoint late: when it is sealed already, or a second later.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist import checkpoint, storage
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.checkpoint import TrainState, state
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.distributed.world import connect
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.small import tiny
from tests.ranks import leave

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
        mine = train_step.contents(TrainState(step=3))
        checkpoint.save(world, checkpoints, mine, config, tokenizers.byte(), {})
    leave()
