"""A training that does not fit into memory is told, with what to type, before it is built."""

from typing import Any

import pytest
import torch

from nanogpt_dist.config import resolve
from nanogpt_dist.distributed.check_memory import check_memory
from nanogpt_dist.distributed.layout import Memory, Site, choose_layout, peak
from nanogpt_dist.distributed.pass_memory import count_parameters
from nanogpt_dist.errors import MAX_LINE, ConfigError
from nanogpt_dist.load_config import load

GIB, GB = 2**30, 10**9
HOST = Memory(512 * GIB, 500 * GIB, 8, "cpu")


def on_cpu(total: int, free: int | None, ranks: int = 1, strategy: str = "auto") -> str | None:
    """check_memory() of a billion parameters: 14.9 GiB of weights, gradients and moments."""
    shape = {"n_layer": 79, "n_head": 16, "n_embd": 1024, "vocab_size": 1024, "block_size": 64}
    config = resolve({**shape, "batch_size": 1, "strategy": strategy, "dtype": "float32"})
    assert count_parameters(config).total == pytest.approx(1e9, rel=0.01)
    site = Site(config, Memory(total, free, ranks, "cpu"), ranks, torch.float32, 16)
    return check_memory(site, choose_layout(site), HOST)


def test_a_model_that_a_machine_does_not_hold_is_refused() -> None:
    assert on_cpu(32 * GIB, 20 * GIB) is None
    assert "with activations about" in str(on_cpu(32 * GIB, 16 * GIB))
    with pytest.raises(ConfigError, match=r"take 14.8 GiB, this machine has 8.0 GiB"):
        on_cpu(8 * GIB, None)
    with pytest.raises(ConfigError, match=r"take 29.7 GiB, this machine has 32.0 GiB, 20.0 free"):
        on_cpu(32 * GIB, 20 * GIB, ranks=2, strategy="ddp")
    assert on_cpu(32 * GIB, 24 * GIB, ranks=2, strategy="fsdp") is None


def on_gpu(preset: str, card: int, ranks: int = 1, free: int | None = None, **given: Any) -> str:
    """What check_memory() says of a preset on cards of so many GB; "": nothing."""
    memory = Memory(card * GB, free, 1, "cuda")
    site = Site(load(preset, given), memory, ranks, torch.bfloat16, 16)
    try:
        said = check_memory(site, choose_layout(site), HOST) or ""
    except ConfigError as error:
        said = f"refused: {error}"
    assert len(said) <= MAX_LINE + len("refused: ")
    return said


@pytest.mark.parametrize(
    ("preset", "card", "ranks", "given", "words"),
    [
        # nothing fits, whatever is chosen
        ("gpt2-1558m", 16, 1, {}, "refused: "),
        ("gpt2-1558m", 24, 1, {}, "type --strategy fsdp --cpu-offload, or take 2 GPUs"),
        ("gpt2-1558m", 16, 1, {}, "or take 4 GPUs"),
        # what somebody asked for is tried
        (
            "gpt2-1558m",
            40,
            8,
            {"strategy": "ddp", "activation_checkpointing": "none", "join_micro_batches": False},
            "type --strategy fsdp --batch-size 6 --gradient-accumulation-steps 80",
        ),
        (
            "gpt2-774m",
            24,
            1,
            {"join_micro_batches": False, "activation_checkpointing": "none"},
            "--activation-checkpointing selective --batch-size 6 --gradient-accumulation-steps 80",
        ),
        ("gpt2-1558m", 24, 8, {"strategy": "ddp"}, "refused: "),
        ("gpt2-1558m", 24, 8, {"strategy": "ddp"}, "type --strategy fsdp"),
        (
            "gpt2-124m",
            16,
            1,
            {"batch_size": 60, "activation_checkpointing": "none", "join_micro_batches": False},
            "type --batch-size 25 --gradient-accumulation-steps 96",
        ),
    ],
)
def test_what_does_not_fit_a_gpu_says_what_to_type(
    preset: str,
    card: int,
    ranks: int,
    given: dict[str, Any],
    words: str,
) -> None:
    said = on_gpu(preset, card, ranks, **given)
    assert words in said
    assert f"and has {card}.0" in said


def test_what_is_typed_fits() -> None:
    given = {"activation_checkpointing": "selective", "batch_size": 6}
    given |= {"gradient_accumulation_steps": 80, "join_micro_batches": False}
    assert on_gpu("gpt2-774m", 24, 1, **given) == ""
    assert on_gpu("gpt2-1558m", 24, 8, strategy="fsdp") == ""
    assert on_gpu("gpt2-1558m", 24, 2) == ""
    assert on_gpu("gpt2-1558m", 24, 1, strategy="fsdp", cpu_offload=True) == ""


def test_a_gpu_that_somebody_else_fills_is_told() -> None:
    assert on_gpu("gpt2-124m", 80, free=70 * GB) == ""
    assert "only 10.0 are free: nvidia-smi" in on_gpu("gpt2-124m", 80, free=10 * GB)


def test_offloaded_weights_are_looked_for_in_the_machines_memory() -> None:
    config = load("gpt2-1558m", {"strategy": "fsdp", "cpu_offload": True})
    site = Site(config, Memory(24 * GB, None, 1, "cuda"), 1, torch.bfloat16, 16)
    layout = choose_layout(site)
    assert peak(layout) <= 24 * GB
    with pytest.raises(ConfigError, match=r"take 23.2 GiB, this machine has 16.0 GiB"):
        check_memory(site, layout, Memory(16 * GIB, 15 * GIB, 1, "cpu"))
