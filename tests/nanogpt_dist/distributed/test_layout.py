"""What `auto` chooses: the fastest that fits, by a device's memory in all."""

from typing import Any

import pytest
import torch

from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.layout import (
    BY_SPEED,
    ENOUGH_TOKENS,
    MOST_TOKENS,
    Layout,
    Memory,
    Site,
    asks_for_fsdp,
    check_ranks,
    choose_layout,
    is_allowed,
    is_compiled,
    next_larger,
    next_layout,
    peak,
)
from nanogpt_dist.distributed.memory import ALLOWANCE_BYTES, CONTEXT_BYTES
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.load_config import load
from nanogpt_dist.model.kernels import joined_batch_size
from tests.nanogpt_dist.distributed import traced

GB = 10**9
GPT2 = 124_373_760  # parameters of gpt2-124m, without biases
A100_40GB, A40_48GB, RTX4090_24GB = 42_298_834_944, 47_576_711_168, 25_386_352_640
CARDS = (16, 24, 40, 48, 80, 141)
SIZES = ("gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m", "shakespeare-char")
TOO_SMALL = {("gpt2-774m", 16, 1), ("gpt2-1558m", 16, 1), ("gpt2-1558m", 24, 1)}


def site_of(preset: str, total: int, ranks: int = 1, **settings: Any) -> Site:
    return Site(load(preset, settings), Memory(total, None, 1, "cuda"), ranks, torch.bfloat16, 16)


def said(layout: Layout) -> tuple[str, str, int]:
    return layout.strategy, layout.activation_checkpointing, layout.batch_size


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("preset", SIZES)
def test_no_choice_takes_more_than_the_card_has(preset: str, card: int, ranks: int) -> None:
    site = site_of(preset, card * GB, ranks)
    layout = choose_layout(site)
    assert site.fits(layout) == (peak(layout) <= card * GB)
    assert site.fits(layout) == ((preset, card, ranks) not in TOO_SMALL)
    assert site.share % layout.batch_size == 0  # the global batch is what it was
    assert layout.batch_size * site.config.block_size <= MOST_TOKENS


@pytest.mark.parametrize(
    ("preset", "total"),
    [("gpt2-1558m", A100_40GB), ("gpt2-1558m", A40_48GB), ("gpt2-774m", RTX4090_24GB)],
)
def test_activations_are_counted(preset: str, total: int) -> None:
    """ddp without checkpointing, at batch_size 12, has been chosen here, and is too much."""
    site = site_of(preset, total, ranks=8)
    config, ddp = site.config, {"strategy": "ddp", "activation_checkpointing": "none"}
    asked = site_of(preset, total, ranks=8, **ddp, join_micro_batches=False)
    by_settings = choose_layout(asked)
    assert said(by_settings) == ("ddp", "none", 12)
    assert not site.fits(by_settings)

    short = config.architecture().model_copy(update={"n_layer": 2})
    one, two = (
        traced.compiled_model(short.model_copy(update={"n_layer": n}), "none", torch.bfloat16, 2)
        for n in (1, 2)
    )
    measured = 6 * (one + (config.n_layer - 1) * (two - one))  # of 12 sequences, weights included
    assert by_settings.usage is not None
    assert by_settings.usage.states + measured > total  # whatever the formulas say

    chosen = choose_layout(site)
    assert site.fits(chosen)
    assert chosen.batch_size * config.block_size >= ENOUGH_TOKENS[0]


@pytest.mark.parametrize(
    ("preset", "card", "ranks", "expected"),
    [
        ("gpt2-124m", 80, 1, ("single", "none", 60)),  # 12 × 40 sequences are 60 × 8
        ("gpt2-124m", 80, 8, ("ddp", "none", 60)),
        ("gpt2-124m", 4, 8, ("fsdp", "full", 4)),  # 4,096 tokens keep a card busy, not more
        ("gpt2-350m", 14, 1, ("single", "none", 4)),
        ("gpt2-774m", 24, 1, ("single", "selective", 6)),
        ("gpt2-1558m", 24, 8, ("fsdp", "none", 4)),
        ("gpt2-1558m", 16, 8, ("fsdp", "full", 10)),
        ("gpt2-1558m", 48, 8, ("ddp", "selective", 6)),
        ("shakespeare-char", 16, 8, ("ddp", "none", 8)),
    ],
)
def test_the_fastest_that_fits_is_chosen(
    preset: str,
    card: int,
    ranks: int,
    expected: tuple[str, str, int],
) -> None:
    assert said(choose_layout(site_of(preset, card * GB, ranks))) == expected


def test_more_memory_is_never_used_worse() -> None:
    """A larger card recomputes no more; with as much of that, its micro-batch is no smaller."""
    for preset in SIZES:
        for ranks in (1, 8):
            before: tuple[int, int] | None = None
            for card in CARDS:
                site = site_of(preset, card * GB, ranks)
                layout = choose_layout(site)
                if not site.fits(layout):
                    continue
                kind = "fsdp" if layout.strategy == "fsdp" else "whole"
                rank = BY_SPEED.index((kind, layout.activation_checkpointing))
                now = -rank, layout.batch_size
                assert before is None or now >= before, (preset, ranks, card)
                before = now


def test_what_is_given_is_obeyed() -> None:
    given: list[dict[str, Any]] = [
        {"strategy": "fsdp"},
        {"activation_checkpointing": "full"},
        {"strategy": "ddp", "activation_checkpointing": "none"},
        {"mesh": "2x4"},
    ]
    for settings in given:
        layout = choose_layout(site_of("gpt2-350m", 24 * GB, 8, **settings))
        for name in ("strategy", "activation_checkpointing"):
            assert getattr(layout, name) == settings.get(name, getattr(layout, name))
        copies = (2, 4) if "mesh" in settings else (1, 8) if layout.strategy == "fsdp" else (8, 1)
        assert (layout.replicate, layout.shard) == copies
    unjoined = choose_layout(site_of("gpt2-124m", 80 * GB, join_micro_batches=False))
    assert unjoined.batch_size == 12
    both = {"join_micro_batches": False, "batch_size": 96, "gradient_accumulation_steps": 5}
    assert choose_layout(site_of("gpt2-124m", 80 * GB, **both)).batch_size == 96  # as given


def test_a_card_of_any_size_gets_65536_tokens_at_most() -> None:
    steps = {"batch_size": 8, "gradient_accumulation_steps": 16}
    assert choose_layout(site_of("gpt2-124m", 10_000 * GB, **steps)).batch_size == 64
    assert choose_layout(site_of("gpt2-124m", 10_000 * GB, batch_size=128)).batch_size == 128


def test_what_is_taken_is_counted_by_strategy() -> None:
    """Of AdamW 16 bytes a parameter; ddp has its buckets, fsdp a share of the states."""
    site = site_of("gpt2-124m", 80 * GB, 8)
    ddp, fsdp = (
        site.with_usage(Layout(kind, *copies, "none", 12)).usage
        for kind, copies in (("ddp", (8, 1)), ("fsdp", (1, 8)))
    )
    assert ddp is not None
    assert fsdp is not None
    assert ddp.weights == 4 * GPT2
    assert ddp.moments == 8 * GPT2
    assert ddp.gradients == 8 * GPT2  # its buckets, and those of earlier micro-batches
    assert (fsdp.weights, fsdp.moments) == (4 * GPT2 // 8, 8 * GPT2 // 8)
    alone = site_of("gpt2-124m", 80 * GB)
    every, several = (
        alone.with_usage(Layout("single", 1, 1, "none", size)).usage
        for size in (alone.share, alone.share // 2)
    )
    assert every is not None
    assert several is not None
    assert several.gradients == 4 * GPT2
    assert every.gradients == 0  # while the activations are most, of the only micro-batch


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_cpu_is_left_its_share(ranks: int) -> None:
    """Weights, gradients and state may take 0.6 of a rank's part under ddp, and fsdp's a share."""
    config = load("gpt2-124m", {"join_micro_batches": False})
    states = 16 * GPT2

    def fits(total: int, layout: Layout) -> bool:
        return Site(config, Memory(total, None, ranks, "cpu"), ranks, torch.bfloat16, 16).fits(
            layout
        )

    whole = Layout("ddp", ranks, 1, "none", 12)
    assert fits(int(ranks * states / 0.6) + ranks, whole)
    assert not fits(int(ranks * states / 0.6) - 2 * ranks, whole)
    assert fits(int(states / 0.6) + ranks, Layout("fsdp", 1, ranks, "none", 12))
    assert not fits(int(states / 0.6) - 2 * ranks, Layout("fsdp", 1, ranks, "none", 12))


def test_auto_leaves_a_cpu_300_mb_and_a_quarter_or_three_heads() -> None:
    site, layout = auto_site("cpu", 40 * GB), Layout("ddp", 2, 1, "none", 1)
    layout = site.with_usage(layout)
    assert site.takes(layout) == int(1.25 * peak(layout)) + 300_000_000
    assert not auto_site("cpu", site.takes(layout) - 1).fits(layout)
    assert auto_site("cpu", site.takes(layout)).fits(layout)
    small = {"n_layer": 1, "n_embd": 64, "n_head": 1, "block_size": 1024, "chunked_loss": False}
    wide = auto_site("cpu", 40 * GB, **small)
    layout = wide.with_usage(Layout("ddp", 2, 1, "none", 12))
    assert layout.usage is not None
    head = layout.usage.head
    assert head > 0.5 * peak(layout)
    assert wide.takes(layout) == 3 * head + 300_000_000


def test_all_of_a_machine_share_its_memory() -> None:
    """Whoever takes of it now; a card is one rank's."""
    layout = auto_site("cpu", None).with_usage(Layout("ddp", 2, 1, "none", 4))
    takes = auto_site("cpu", None).takes(layout)
    for total, there in ((2 * takes, True), (2 * takes - 2, False)):
        config = auto_site("cpu", None).config
        for site in (
            Site(config, Memory(total, None, 2, "cpu"), 2, torch.bfloat16, 16),
            Site(config, Memory(total, None, 2, "cpu", 80 * GB), 2, torch.bfloat16, 16),
        ):
            assert site.fits(layout) == site.fits_in_all(layout) == there
    on_card = auto_site("cuda", None).with_usage(Layout("ddp", 2, 1, "none", 4))
    for total, there in ((peak(on_card), True), (peak(on_card) - 1, False)):
        site = Site(
            auto_site("cuda", None).config, Memory(total, None, 1, "cuda"), 2, torch.bfloat16, 16
        )
        assert site.fits(on_card) == site.fits_in_all(on_card) == there


def test_where_nothing_fits_what_takes_least_is_chosen() -> None:
    site = site_of("gpt2-1558m", GB, 2)
    chosen = choose_layout(site)
    assert said(chosen) == ("fsdp", "full", 1)
    assert peak(chosen) > GB


def test_the_next_larger_micro_batch_is_the_next_divisor() -> None:
    site = auto_site("cuda", None)  # 240 sequences of each rank
    layout, sizes = choose_layout(auto_site("cuda", 8 * GB)), []
    larger: Layout | None = Layout(layout.strategy, layout.replicate, layout.shard, "none", 1)
    while larger is not None:
        assert is_allowed(site, larger)
        assert (larger.strategy, larger.activation_checkpointing) == (layout.strategy, "none")
        sizes.append(larger.batch_size)
        larger = next_larger(site, larger)
    assert sizes == [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 40, 48, 60]
    assert not is_allowed(site, Layout(layout.strategy, layout.replicate, layout.shard, "none", 7))


def test_a_mesh_or_offloading_asks_for_fsdp() -> None:
    for settings, asks in (
        ({}, False),
        ({"mesh": "2x2"}, True),
        ({"cpu_offload": True}, True),
        ({"strategy": "fsdp", "mesh": "2x2"}, False),
        ({"strategy": "fsdp"}, False),
    ):
        assert asks_for_fsdp(TrainConfig(**settings)) == asks  # type: ignore[arg-type]


def test_a_rank_has_one_sequence_at_least() -> None:
    few = {"batch_size": 1, "gradient_accumulation_steps": 2}
    assert [site_of("gpt2-124m", GB, ranks, **few).share for ranks in (1, 2, 4)] == [2, 1, 1]


def test_what_is_compiled_and_what_autocast_does() -> None:
    compiled = {None: (True, False, False), True: (True,) * 3, False: (False,) * 3}
    for setting, expected in compiled.items():
        config = TrainConfig(compile=setting)
        assert tuple(is_compiled(config, kind) for kind in ("cuda", "cpu", "mps")) == expected
    for strategy, dtype in (
        ("single", torch.bfloat16),
        ("ddp", torch.bfloat16),
        ("fsdp", torch.float32),
    ):
        assert Layout(strategy, 1, 1).autocast_dtype(torch.bfloat16) == dtype
    layouts = Layout("fsdp", 2, 4), Layout("ddp", 8, 1), Layout("single", 1, 1)
    assert [*map(str, layouts)] == ["fsdp, 2 copies of 4 shards", "ddp", "single"]


def test_a_cpu_is_chosen_for_as_before() -> None:
    config = resolve({"vocab_size": 256, "n_layer": 2, "block_size": 256, "batch_size": 4})
    for dtype in (torch.bfloat16, torch.float32):
        for ranks, strategy in ((1, "single"), (2, "ddp")):
            site = Site(config, Memory(32 * GB, None, ranks, "cpu"), ranks, dtype, 16)
            joined = joined_batch_size(config, ranks) if dtype == torch.bfloat16 else 4
            batch_size = next(n for n in range(joined, 0, -1) if site.share % n == 0)
            assert said(choose_layout(site)) == (strategy, "none", batch_size)
    alone = config.model_copy(update={"join_micro_batches": False})
    site = Site(alone, Memory(32 * GB, None, 1, "cpu"), 1, torch.bfloat16, 16)
    assert choose_layout(site).batch_size == 4


def test_what_is_free_does_not_enter() -> None:
    """So a resume on the same card chooses the same."""
    for free in (None, 0, GB, 80 * GB):
        memory = Memory(80 * GB, free, 1, "cuda")
        site = Site(load("gpt2-774m"), memory, 8, torch.bfloat16, 16)
        assert choose_layout(site) == choose_layout(site_of("gpt2-774m", 80 * GB, 8))


def auto_site(device: str, room: int | None, ranks: int = 2, **settings: Any) -> Site:
    memory = Memory(80 * GB, None, ranks if device == "cpu" else 1, device, room)
    config = load("gpt2-124m", {"auto_batch_size": True, **settings})
    return Site(config, memory, ranks, torch.bfloat16, 16)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_auto_takes_the_largest_micro_batch_that_fits_into_what_is_free(
    device: str, ranks: int
) -> None:
    before = 0
    for room in (6 * GB, 10 * GB, 20 * GB, 40 * GB):
        site = auto_site(device, room, ranks)
        layout = choose_layout(site)
        assert site.fits(layout)
        assert site.takes(layout) <= room
        assert is_allowed(site, layout)
        assert site.share % layout.batch_size == 0
        larger = next_larger(site, layout)
        assert larger is None or not site.fits(larger)
        assert layout.batch_size >= before or layout.activation_checkpointing == "none"
        before = layout.batch_size
    assert choose_layout(auto_site(device, 40 * GB, ranks)).batch_size >= 12


def test_auto_leaves_room_on_a_card_for_what_is_still_to_come() -> None:
    """Once the context is there: NCCL's buffers, cuBLAS' workspaces, what is in pieces."""
    for ranks in (1, 8):
        for room in (10 * GB, 20 * GB, 40 * GB):
            layout = choose_layout(auto_site("cuda", room, ranks))
            assert layout.usage is not None
            assert layout.usage.allowance > ALLOWANCE_BYTES > CONTEXT_BYTES
            tensors = peak(layout) - layout.usage.allowance
            assert tensors + layout.usage.allowance - CONTEXT_BYTES <= room


def test_auto_chooses_on_a_card_that_is_empty_what_training_chooses_anyhow() -> None:
    site = auto_site("cuda", None, 8)
    by_itself = site_of("gpt2-124m", 80 * GB, 8)
    assert choose_layout(site) == choose_layout(by_itself)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"strategy": "ddp"}, {"strategy": "fsdp"}, {"activation_checkpointing": "none"}],
    ids=str,
)
def test_each_fall_back_takes_less_until_there_is_no_other(
    device: str, settings: dict[str, Any]
) -> None:
    """Of one strategy and checkpointing smaller micro-batches first; then these, in their order."""
    site = auto_site(device, 40 * GB, **settings)
    layout: Layout | None = choose_layout(site)
    tried = []
    while layout is not None:
        assert is_allowed(site, layout)
        tried.append(layout)
        layout = next_layout(site, layout)
    peaks = [peak(layout) for layout in tried]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks) > 3
    order = {"none": 0, "selective": 1, "full": 2}
    stages = [(one.strategy == "fsdp", order[one.activation_checkpointing]) for one in tried]
    assert stages == sorted(stages)
    for stage in set(stages):
        sizes = [one.batch_size for one, at in zip(tried, stages, strict=True) if at == stage]
        assert sizes == sorted(sizes, reverse=True)
    last = tried[-1]
    assert last.batch_size == 1
    assert last.strategy == settings.get("strategy", "fsdp")
    assert (last.activation_checkpointing == "none") == ("activation_checkpointing" in settings)


def test_a_strategy_that_there_is_not_on_so_many_ranks_is_refused() -> None:
    for ranks in (1, 2):
        check_ranks(TrainConfig(strategy="ddp"), ranks)
    check_ranks(TrainConfig(strategy="single"), 1)
    with pytest.raises(ConfigError, match="single on 2 ranks would train 2 models"):
        check_ranks(TrainConfig(strategy="single"), 2)
    check_ranks(TrainConfig(strategy="fsdp", mesh="2x2"), 4)
    with pytest.raises(
        ConfigError, match=r"mesh 2x2 is for 4 ranks, there are 6; give 1x6, 2x3, 3x2, 6x1$"
    ):
        check_ranks(TrainConfig(strategy="fsdp", mesh="2x2"), 6)
    for strategy in ("single", "ddp"):
        for flag, settings in (("mesh", {"mesh": "1x1"}), ("cpu-offload", {"cpu_offload": True})):
            with pytest.raises(
                ConfigError, match=f"--{flag} needs --strategy fsdp, this is {strategy}: add it"
            ):
                check_ranks(TrainConfig(strategy=strategy, **settings), 1)
    check_ranks(TrainConfig(mesh="2x3"), 6)
