"""Run under torchrun by test_world.py: each rank writes what it was told to FOLDER/rankN.json."""

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


def difference(world: World, **what: str) -> str:
    """What this rank hears where a text of `what` differs between the ranks."""
    try:
        world.raise_if_ranks_differ(**what)
    except ConfigError as error:
        return str(error)
    return "no difference"


def loaded(world: World, fails: bool) -> list[str]:
    """What a rank says of loading, which it notes in a file that all of them share."""
    order = Path(sys.argv[1], f"order-{fails}")

    def load() -> str:
        with order.open("a") as file:
            file.write(f"{world.rank} ")
        if fails:
            raise BadDataError("no such file")
        return f"by rank {world.rank}"

    try:
        said = world.local_rank0_first(load)
    except BadDataError as error:
        said = str(error)
    return [*world.gather_texts(said), order.read_text()]


with connect("cpu", timeout_s=60) as world:
    rank = world.rank
    mine = [list(world.split_over_ranks(items)) for items in ("", "a", "abc", "abcd")]
    found = {
        "sum": world.sum(torch.tensor([1.0, 10.0]) * (world.rank + 1)).tolist(),
        "any": [world.any(False), world.any(world.rank == 1)],
        "text": [
            world.broadcast_text(""),
            world.broadcast_text("grüße" if world.is_rank0 else "ignored"),
        ],
        "one fails": told(world, BadDataError("bad shard") if world.rank == 1 else None),
        "both fail": told(world, ConfigError(f"of rank {world.rank}")),
        "flags": world.any_of_each(False, rank == 1, rank == 0, True),
        "vote": world.vote([rank == 1, False], [rank + 0.5, 2.0 * rank, 3.0]),
        "ints": world.gather_ints(10 * rank + 1),
        "texts": [world.gather_texts("é" * 2 * rank), world.gather_texts("b" * (1 - rank))],
        "shares": [json.loads(text) for text in world.gather_texts(json.dumps(mine))],
        "differ": [
            difference(world, both="x"),
            difference(world, both="x", dropout=f"0.{rank}"),
        ],
        "loaded": [loaded(world, False), loaded(world, True)],
        "after": world.sum(torch.ones(1)).item(),
    }
    assert told(world, None) == []
    Path(sys.argv[1], f"rank{world.rank}.json").write_text(json.dumps(found))
os._exit(0)  # gloo's threads now and then abort the interpreter's teardown
