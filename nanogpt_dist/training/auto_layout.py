"""The layout that auto_batch_size chooses, by what is free, and keeps over all attempts of a run.

run.json remembers it: another micro-batch would round otherwise, and a resumed run is to have the
bits of one that was not interrupted.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.check_memory import memory_of, smallest_room
from nanogpt_dist.distributed.layout import Layout, Site, is_allowed, next_larger
from nanogpt_dist.distributed.strategy import plan_layout, site_of
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.training.optim import training_bytes

KEY = "auto_layout"  # in run.json
FIELDS = ("strategy", "replicate", "shard", "activation_checkpointing", "batch_size")


@dataclass(frozen=True)
class Known:
    """What auto_batch_size chooses by: the room that each rank has, and what the run had before.

    total: of the memory in all, each rank's share. remembered: of run.json, as JSON; "": nothing.
    All of it is the same on all ranks.
    """

    room: int | None
    total: int
    remembered: str


def look_up(config: TrainConfig, world: World) -> Known:
    """What a layout of `config` is to be chosen by; all ranks together, whatever each has typed."""
    if not world.any(config.auto_batch_size):
        return Known(None, 0, "")
    before: Any = None
    if world.is_rank0 and config.out_dir is not None:
        with contextlib.suppress(NanogptError):
            before = run_folder.read_json(Path(config.out_dir) / "run.json").get(KEY)
    remembered = world.broadcast_text(json.dumps(before) if before else "")
    memory = memory_of(world.device, world)
    total = min(world.gather_ints(memory.total // memory.ranks))
    return Known(smallest_room(config, world), total, remembered)


def remembered_layout(site: Site, known: Known) -> Layout | None:
    """The layout that the run had before, where these ranks and settings still leave it open."""
    said = json.loads(known.remembered or "null")
    if not isinstance(said, dict) or said.get("ranks") != site.ranks:
        return None
    if said.get("device") != site.memory.device or not set(FIELDS) <= said.keys():
        return None
    layout = Layout(**{name: said[name] for name in FIELDS})
    return site.with_usage(layout) if is_allowed(site, layout) else None


def to_remember(config: TrainConfig, layout: Layout, world: World) -> dict[str, Any]:
    """What run.json keeps of `layout`: nothing without auto_batch_size."""
    if not config.auto_batch_size:
        return {}
    chosen = {name: value for name, value in asdict(layout).items() if name in FIELDS}
    return {KEY: {**chosen, "ranks": world.size, "device": world.device.type}}


def choose(config: TrainConfig, world: World, known: Known) -> tuple[Layout, str | None]:
    """The layout that the settings ask for; with auto_batch_size also a line that says why.

    Raises ConfigError where the settings do not fit the ranks.
    """
    layout = plan_layout(config, world, training_bytes(config), known.room)
    if not config.auto_batch_size:
        return layout, None
    site = site_of(config, world, training_bytes(config), known.room)
    before = remembered_layout(site, known)
    memory = replace(site.memory, total=known.total * site.memory.ranks)
    if before is not None and replace(site, memory=memory).fits_in_all(before):
        return before, (
            f"--batch-size auto: {described(before)}, as {config.out_dir}/run.json remembers; "
            "--batch-size with a number sets another"
        )
    why = "" if before is None else f"not the {described(before)} of before, too much here: "
    why += f"takes about {site.takes(layout) / 2**30:,.1f} GiB"
    if known.room is not None:
        why += f" of {known.room / 2**30:,.1f} that each rank may take"
    larger = next_larger(site, layout)
    if larger is not None:
        why += f", {larger.batch_size} would take {site.takes(larger) / 2**30:,.1f}"
    return layout, f"--batch-size auto: {described(layout)}: {why}"


def described(layout: Layout) -> str:
    """A layout in words."""
    mode = layout.activation_checkpointing
    return (
        f"micro-batches of {layout.batch_size}, {layout}, "
        f"{'no' if mode == 'none' else mode} activation checkpointing"
    )
