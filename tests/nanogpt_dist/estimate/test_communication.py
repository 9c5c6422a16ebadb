"""Bytes that ranks send in a step, and what hides behind computing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.pass_memory import count_parameters
from nanogpt_dist.estimate.communication import (
    Group,
    Links,
    Pass,
    communication,
    exposed_seconds,
)
from tests.conftest import in_ranks

CONFIG = TrainConfig(vocab_size=50304)
P = count_parameters(CONFIG)
LINKS = Links(link=100e9, network=10e9, ranks_per_node=8)
PASS = Pass(forward=0.1, backward=0.2, micro_batches=3)


def sent(layout: Layout, config: TrainConfig = CONFIG, links: Links = LINKS) -> dict[str, int]:
    return {each.name: each.sent_bytes for each in communication(config, layout, links, PASS)}


def test_a_single_rank_sends_nothing() -> None:
    assert communication(CONFIG, Layout("single", 1, 1), LINKS, PASS) == []
    muon = CONFIG.model_copy(update={"optimizer": "muon"})
    assert communication(muon, Layout("single", 1, 1), LINKS, PASS) == []


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_ddp_reduces_each_gradient_once_a_step(ranks: int) -> None:
    expected = 2 * 4 * P.total * (ranks - 1) / ranks
    assert sent(Layout("ddp", ranks, 1)) == {"all-reduce of gradients": round(expected)}


def test_fsdp_gathers_in_each_micro_batch_and_reduces_once() -> None:
    assert sent(Layout("fsdp", 1, 8)) == {
        "all-gather of weights, forward": round(3 * 2 * P.total * 7 / 8),
        "all-gather of weights, backward": round(3 * 2 * (P.total - P.root) * 7 / 8),
        "reduce-scatter of gradients": round(4 * P.total * 7 / 8),
    }
    kept = CONFIG.model_copy(update={"reshard_after_forward": False})
    assert "all-gather of weights, backward" not in sent(Layout("fsdp", 1, 8), kept)


def test_copies_add_up_the_gradients_of_their_shards() -> None:
    found = sent(Layout("fsdp", 4, 8))
    assert found["all-reduce over copies"] == round(2 * 4 * P.total / 8 * 3 / 4)
    within = communication(CONFIG, Layout("fsdp", 4, 8), LINKS, PASS)
    assert [each.over for each in within] == ["link", "link", "link", "network"]


def test_muon_sends_matrices_and_updates_beside_the_gradients() -> None:
    muon = CONFIG.model_copy(update={"optimizer": "muon"})
    M = CONFIG.n_layer * P.matrices
    assert sent(Layout("ddp", 4, 1), muon)["all-gather of updates"] == round(2 * M * 3 / 4)
    found = sent(Layout("fsdp", 1, 4), muon)
    assert found["all-to-all of matrices"] == round(2 * 2 * M / 4 * 3 / 4)
    assert "all-gather of updates" not in found


def test_a_group_crosses_nodes_where_its_ranks_are_on_several() -> None:
    assert not Group(8).spans_nodes(LINKS)
    assert Group(9).spans_nodes(LINKS)
    assert Group(2, stride=8).spans_nodes(LINKS)
    assert not Group(2, stride=4).spans_nodes(LINKS)
    # one ring through a node's border, or one for each of its ranks
    assert Group(16).seconds(1e9, LINKS) == pytest.approx(0.1)
    assert Group(2, stride=8).seconds(1e9, LINKS) == pytest.approx(0.8)


layouts = st.sampled_from(
    [Layout("ddp", 8, 1), Layout("ddp", 64, 1), Layout("fsdp", 1, 64), Layout("fsdp", 8, 8)]
)


@given(layout=layouts, network=st.floats(1e8, 1e13), seconds=st.floats(0, 10))
def test_what_hides_is_neither_more_than_there_is_nor_than_is_computed(
    layout: Layout,
    network: float,
    seconds: float,
) -> None:
    links, timed = Links(100e9, network, 8), Pass(seconds, 2 * seconds, 3)
    found = communication(CONFIG, layout, links, timed)
    for each in found:
        assert 0 <= each.hidden_seconds <= each.seconds
    assert sum(each.hidden_seconds for each in found) <= 9 * seconds * (1 + 1e-9)
    idle = communication(CONFIG, layout, links, Pass(0, 0, 3))
    assert exposed_seconds(idle) == pytest.approx(sum(each.seconds for each in idle))
    faster = communication(CONFIG, layout, Links(100e9, 2 * network, 8), timed)
    assert sum(each.seconds for each in faster) <= sum(each.seconds for each in found)


@pytest.mark.parametrize(
    ("ranks", "strategies"),
    [(2, ("ddp", "fsdp")), pytest.param(4, ("ddp", "2x2"), marks=pytest.mark.thorough)],
)
def test_real_ranks_exchange_what_is_said(
    ranks: int,
    strategies: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """As torch's profiler records a step of theirs, with two micro-batches on each rank."""
    in_ranks("collectives", ranks, tmp_path / "found.json", *strategies)
    recorded = json.loads((tmp_path / "found.json").read_text())
    config = TrainConfig(vocab_size=512, n_layer=2, n_head=2, n_embd=64, block_size=32)
    for strategy in strategies:
        copies, shards = {"ddp": (ranks, 1), "fsdp": (1, ranks), "2x2": (2, 2)}[strategy]
        layout = Layout("ddp" if strategy == "ddp" else "fsdp", copies, shards)
        timed = replace(PASS, micro_batches=2)
        found = {each.name: each.sent_bytes for each in communication(config, layout, LINKS, timed)}
        real = recorded[strategy]
        gathered = sum(size for name, size in found.items() if name.startswith("all-gather"))
        share = (shards - 1) / shards
        assert gathered == round(2 * real.get("c10d::_allgather_base_", 0) * share)
        scattered = real.get("c10d::_reduce_scatter_base_", 0)
        assert found.get("reduce-scatter of gradients", 0) == round(4 * scattered * share)
        reduced = sum(size for name, size in found.items() if name.startswith("all-reduce"))
        all_reduced = real.get("gloo:all_reduce", 0)
        assert reduced == round(2 * 4 * all_reduced * (copies - 1) / copies)
