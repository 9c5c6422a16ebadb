"""What auto_batch_size chooses by, and when it takes what a run had before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed import strategy
from nanogpt_dist.distributed.layout import Layout, Memory
from nanogpt_dist.distributed.world import World
from nanogpt_dist.load_config import load
from nanogpt_dist.training.auto_layout import Known, choose, look_up, to_remember

GB = 10**9
WORLD = World(rank=0, local_rank=0, size=8, device=torch.device("cpu"), backend=None, local_size=8)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Layout, str]]:
    """What 8 ranks choose on devices of so many bytes, of which all are free."""

    def chosen(device: str, total: int, remembered: str = "", **seen: int) -> tuple[Layout, str]:
        ranks = 8 if device == "cpu" else 1
        room = seen.get("room", total // ranks)
        memory = Memory(total, None, ranks, device, room)
        monkeypatch.setattr(strategy, "memory_of", lambda *_: memory)
        known = Known(room, seen.get("least", total // ranks), remembered)
        layout, why = choose(auto(vocab_size=50304), WORLD, known)
        assert why is not None
        return layout, why

    return chosen


def auto(**settings: Any) -> TrainConfig:
    return load("gpt2-1558m", {"auto_batch_size": True, "out_dir": "out/run", **settings})


def as_noted(layout: Layout, device: str) -> str:
    noted = to_remember(auto(), layout, WORLD)["auto_layout"]
    return json.dumps({**noted, "device": device})


@pytest.mark.parametrize(("device", "large", "small"), [("cuda", 80, 16), ("cpu", 1600, 200)])
def test_a_run_that_moves_to_a_smaller_device_is_chosen_for_anew(
    device: str, large: int, small: int, on: Callable[..., tuple[Layout, str]]
) -> None:
    before, _ = on(device, large * GB)
    remembered = as_noted(before, device)
    there, why = on(device, large * GB, remembered)
    assert there == before
    assert "run.json remembers" in why
    anew, _ = on(device, small * GB)
    assert anew != before
    here, why = on(device, small * GB, remembered)
    assert here == anew
    assert f"not the micro-batches of {before.batch_size}, ddp, no activation check" in why
    assert "of before, too much here: takes about " in why


@pytest.mark.parametrize(("device", "total"), [("cuda", 80), ("cpu", 1600)])
def test_what_is_free_does_not_change_what_is_remembered(
    device: str, total: int, on: Callable[..., tuple[Layout, str]]
) -> None:
    before, _ = on(device, total * GB)
    remembered = as_noted(before, device)
    assert on(device, total * GB, remembered, room=4 * GB)[0] == before
    assert on(device, total * GB, room=4 * GB)[0] != before


def test_all_ranks_take_the_remembered_layout_or_none(
    on: Callable[..., tuple[Layout, str]],
) -> None:
    before, _ = on("cuda", 80 * GB)
    remembered = as_noted(before, "cuda")
    of_the_large, of_the_small = (
        on("cuda", total * GB, remembered, room=15 * GB, least=16 * GB)[0] for total in (80, 16)
    )
    assert of_the_large == of_the_small != before


class Asked(World):
    """Of two ranks, of which the other has typed auto; keeps what both are asked together."""

    asked: list[str]

    def any(self, flag: bool) -> bool:
        self.asked.append("any")
        return True

    def broadcast_text(self, text: str) -> str:
        self.asked.append("text")
        return text

    def gather_ints(self, value: int) -> list[int]:
        self.asked.append("ints")
        return [value, value]


def test_ranks_with_and_without_auto_ask_each_other_the_same(tmp_path: Path) -> None:
    told = []
    for typed in (True, False):
        world = Asked(rank=0, local_rank=0, size=2, device=torch.device("cpu"), backend="gloo")
        object.__setattr__(world, "asked", [])
        known = look_up(auto(auto_batch_size=typed, out_dir=str(tmp_path)), world)
        told.append((world.asked, known.remembered, known.total))
    assert told[0] == told[1]
    assert "ints" in told[0][0]
