"""Run under torchrun by test_distributed.py: each rank writes what it was told to
FOLDER/rankN.json.
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.errors import BadDataError, ConfigError, NanogptError


def told(world: World, error: NanogptError | None) -> list[object]:
    """Code, message and agreement that this rank sees when it has `error`."""
    try:
        with world.raise_on_all_ranks():
            if error:
                raise error
    except NanogptError as seen:
        return [int(seen.code), str(seen), seen.agreed]
    return []


with connect("cpu", timeout_s=60) as world:
    found = {
        "sum": world.sum(torch.tensor([1.0, 10.0]) * (world.rank + 1)).tolist(),
        "any": [world.any(False), world.any(world.rank == 1)],
        "text": [
            world.broadcast_text(""),
            world.broadcast_text("grüße" if world.is_rank0 else "ignored"),
        ],
        "one fails": told(world, BadDataError("bad shard") if world.rank == 1 else None),
        "both fail": told(world, ConfigError(f"of rank {world.rank}")),
        "after": world.sum(torch.ones(1)).item(),
    }
    assert told(world, None) == []
    Path(sys.argv[1], f"rank{world.rank}.json").write_text(json.dumps(found))
os._exit(0)  # gloo's threads now and then abort the interpreter's teardown
