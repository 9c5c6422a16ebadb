"""What fits, and how: by the function that training chooses with, and the bytes that it counts."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.check_memory import advice
from nanogpt_dist.distributed.layout import Memory, Site, choose_layout
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.estimate import memory_plan
from nanogpt_dist.estimate.memory_plan import Alternative, exact_flags, site_of
from nanogpt_dist.inspect import architecture
from nanogpt_dist.load_config import load, with_vocabulary
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.training.optim import training_bytes

GB = 10**9
SHAPE_70B: dict[str, Any] = {
    "n_layer": 80,
    "n_embd": 8192,
    "n_head": 64,
    "n_kv_head": 8,
    "mlp": "swiglu",
    "rotary": True,
    "tied_head": False,
    "block_size": 4096,
    "vocab_size": 128_256,
    "batch_size": 1,
    "gradient_accumulation_steps": 1024,
}


def alternatives(
    config: TrainConfig, card: int, ranks: int, per_node: int, *more: Any, **named: Any
) -> list[Alternative]:
    return memory_plan.alternatives(
        site_of(config, card, ranks, per_node, *more, **named), per_node
    )


def best(
    config: TrainConfig, card: int, ranks: int, per_node: int, *more: Any, **named: Any
) -> Alternative:
    return memory_plan.best(site_of(config, card, ranks, per_node, *more, **named), per_node)


def typed(config: TrainConfig, flags: str) -> TrainConfig:
    """`config` with flags as a shell would give them."""
    words, changes = flags.split(), dict[str, Any]()
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        if not words or words[0].startswith("--"):
            changes[name.removeprefix("no_")] = not name.startswith("no_")
        else:
            word = words.pop(0)
            changes[name] = int(word) if word.isdigit() else word
    return resolve({**config.model_dump(), **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_the_best_is_what_training_chooses_and_one_of_the_alternatives(name: str) -> None:
    config = with_vocabulary(load(name))
    for card in (16, 80):
        for ranks in (1, 2):
            memory = Memory(card * GB, None, 1, "cuda")
            site = Site(config, memory, ranks, torch.bfloat16, training_bytes(config))
            found = best(config, card * GB, ranks, ranks, dtype=torch.bfloat16)
            ways = alternatives(config, card * GB, ranks, ranks, dtype=torch.bfloat16)
            assert found.layout in [way.layout for way in ways]
            if found.fits:
                assert (found.layout, found.flags) == (choose_layout(site), "")
                assert found.room >= 0
            else:
                assert not any(way.fits for way in ways)
                assert found.advice == advice(site, found.layout)


@pytest.mark.parametrize("name", PRESETS)
def test_show_params_and_plan_say_the_same_bytes(name: str) -> None:
    """Weights, gradients, moments and averages: what one process holds of each parameter."""
    config = with_vocabulary(load(name))
    more = {"ema_decay": 0.999}
    for each in (config, config.model_copy(update=more)):
        counted = architecture.count_parameters(each)
        for way in alternatives(each, 80 * GB, 2, 2):
            if way.strategy == "ddp":
                states = ("weights", "averages", "moments", "buckets")
                assert sum(way.parts[part] for part in states) == counted.training_bytes
                assert way.parts["weights"] == counted.fp32_bytes
                assert way.parts["averages"] == (0 if each is config else counted.fp32_bytes)


def test_a_larger_micro_batch_than_the_settings_have_is_typed_too() -> None:
    asked = {"activation_checkpointing": "none", "join_micro_batches": False}
    config = load("gpt2-1558m", asked)
    found = best(config, 16 * GB, 16, 8)
    assert found.layout.batch_size > config.batch_size
    assert found.flags == "--activation-checkpointing full --join-micro-batches"
    again = best(typed(config, found.flags), 16 * GB, 16, 8)
    assert (again.layout, again.flags) == (found.layout, "")


@given(
    name=st.sampled_from(("gpt2-124m", "gpt2-774m", "gpt2-1558m", "modern-124m")),
    card=st.sampled_from((16, 24, 48, 80)),
    nodes=st.sampled_from((1, 2, 4)),
    each=st.sampled_from((1, 2, 4, 8)),
    given_settings=st.fixed_dictionaries(
        {},
        optional={
            "join_micro_batches": st.booleans(),
            "optimizer": st.sampled_from(("adamw", "muon")),
            "ema_decay": st.just(0.99),
            "activation_checkpointing": st.sampled_from(("none", "selective", "full")),
        },
    ),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_what_an_alternative_says_to_type_makes_it(
    name: str, card: int, nodes: int, each: int, given_settings: dict[str, Any], data: st.DataObject
) -> None:
    config = with_vocabulary(load(name, given_settings))
    ranks = nodes * each
    ways = alternatives(config, card * GB, ranks, each)
    assert named(ways) == (
        {"single"} if ranks == 1 else {"ddp", "fsdp"} | ({"hsdp"} if nodes > 1 < each else set())
    )
    for way in ways:
        assert sum(way.parts.values()) == way.peak == card * GB - way.room
        assert min(way.parts.values()) >= 0
        assert way.fits == (way.room >= 0)
        assert way.micro_batches * way.layout.batch_size * ranks == config.global_batch_size
    way = data.draw(st.sampled_from([way for way in ways if way.flags]))  # "": chosen for this card
    made = best(typed(config, way.flags), 10**15, ranks, each)
    assert made.layout == way.layout, way.flags
    found = best(config, card * GB, ranks, each)
    if found.fits:
        again = best(typed(config, found.flags), card * GB, ranks, each)
        assert (again.layout, again.flags) == (found.layout, "")
    else:
        assert not any(way.fits for way in ways if way.strategy != "hsdp")


def test_what_does_not_fit_says_what_to_type() -> None:
    asked = {"strategy": "ddp", "activation_checkpointing": "none", "join_micro_batches": False}
    config = load("gpt2-1558m", asked)
    found = best(config, 40 * GB, 8, 8)
    assert found.flags == "--strategy fsdp --batch-size 6 --gradient-accumulation-steps 80"
    assert found.fits
    none = best(load("gpt2-1558m"), 16 * GB, 1, 1)
    assert not none.fits
    assert none.room < 0
    assert none.advice == "type --strategy fsdp --cpu-offload, or take 4 GPUs"


def test_the_flags_of_hsdp_take_back_another_strategy() -> None:
    config = load("gpt2-124m", {"strategy": "ddp"})
    way = next(way for way in alternatives(config, 80 * GB, 16, 8) if way.strategy == "hsdp")
    assert way.flags.startswith("--strategy fsdp --mesh 2x8 ")
    made = best(typed(config, way.flags), 80 * GB, 16, 8)
    assert made.layout == way.layout


def test_ddp_on_one_rank_is_one_of_the_ways() -> None:
    config = load("gpt2-124m", {"strategy": "ddp"})
    ways = alternatives(config, 80 * GB, 1, 1)
    assert best(config, 80 * GB, 1, 1).layout in [way.layout for way in ways if way.flags == ""]
    assert named(ways) == {"single", "ddp"}


def test_a_70b_model_is_planned_for_1024_ranks() -> None:
    config = resolve(SHAPE_70B)
    ways = alternatives(config, 80 * GB, 1024, 8)
    fitting = {(way.strategy, way.layout.activation_checkpointing) for way in ways if way.fits}
    assert fitting == {("fsdp", "selective"), ("fsdp", "full")}
    found = best(config, 80 * GB, 1024, 8)
    assert (found.strategy, found.layout.activation_checkpointing) == ("fsdp", "selective")
    assert exact_flags(config, found.layout) == (
        "--strategy fsdp --activation-checkpointing selective --no-join-micro-batches "
        "--batch-size 1 --gradient-accumulation-steps 1024"
    )


def test_a_cpus_memory_is_that_of_the_machine() -> None:
    """Ranks of a node share it, and its passes are joined by what it has, not by what is here."""
    config = load("gpt2-124m", {"batch_size": 1, "gradient_accumulation_steps": 480})
    small, large = (best(config, size * GB, 2, 2, "cpu") for size in (16, 512))
    assert small.layout.batch_size == 3
    assert large.layout.batch_size == 4
    assert (small.fits, small.flags, large.fits, large.flags) == (True, "", True, "")
    assert small.parts["slack"] == small.parts["runtime"] == 0
    assert large.room == 256 * GB - large.peak
    given = best(load("gpt2-124m"), 16 * GB, 2, 2, "cpu")  # whose 12 sequences are too many
    assert given.fits
    assert "--no-join-micro-batches --batch-size" in given.flags
    nothing = best(config, 2 * GB, 2, 2, "cpu")
    assert not nothing.fits
    assert str(nothing.advice).startswith("take a smaller model")


def test_ranks_that_there_cannot_be_are_refused() -> None:
    config = load("gpt2-124m")
    for ranks, each, words in ((7, 7, "cannot share 480"), (8, 3, "not a multiple of 3")):
        with pytest.raises(ConfigError, match=words):
            alternatives(config, GB, ranks, each)
    with pytest.raises(ConfigError, match="2x2 is for 4 ranks, there are 8"):
        alternatives(load("gpt2-124m", {"mesh": "2x2"}), GB, 8, 8)


def named(ways: list[Alternative]) -> set[str]:
    return {way.strategy for way in ways}


def test_what_only_fsdp_has_leaves_the_others_out() -> None:
    assert named(alternatives(load("gpt2-124m", {"mesh": "2x4"}), GB, 8, 8)) == {"hsdp"}
    offloaded = load("gpt2-124m", {"strategy": "fsdp", "cpu_offload": True})
    ways = alternatives(offloaded, 80 * GB, 8, 8)
    assert named(ways) == {"fsdp"}
    assert all(way.parts["weights"] == way.parts["moments"] == 0 for way in ways)
