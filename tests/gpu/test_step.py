"""One step as the device sees it: what is compiled, what waits, what is copied, which kernels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanogpt_dist.bench.clock import profiler
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.devices import pick_dtype
from nanogpt_dist.distributed.strategy import needs_group, plan_layout
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from nanogpt_dist.transfers import Staged, stager
from tests.gpu.conftest import Measured
from tests.gpu.machine import SIMULATED
from tests.gpu.runs import SETTINGS

VOCAB = 320
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "dropout": {"dropout": 0.1},
    "fsdp": {"strategy": "fsdp"},
    "options": {
        "intra_document": True,
        "rotary": True,
        "n_kv_head": 1,
        "qk_norm": True,
        "mlp": "swiglu",
        "norm": "rmsnorm",
    },
}
WARM_UP = 3


@pytest.fixture(autouse=True)
def other_tests_graphs_are_forgotten() -> Iterator[None]:
    """As in a process of its own, which has compiled nothing yet."""
    if not SIMULATED:  # it asks for what a build without CUDA lacks
        torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.cuda.empty_cache()


def compiled() -> int:
    """Graphs that were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def config_of(**changes: Any) -> TrainConfig:
    return resolve({**SETTINGS, "vocab_size": VOCAB, "dtype": "bfloat16", **changes})


def make_step(config: TrainConfig, world: World) -> TrainStep:
    layout = plan_layout(config, world, training_bytes(config))
    return TrainStep(config, world, layout, pick_dtype(config.dtype, world.device))


def micro_batches(config: TrainConfig, step: int) -> Staged:
    """Random ids, inputs and targets of each micro-batch, as the prefetcher has them ready."""
    drawn = np.random.default_rng(step)
    shape = (config.gradient_accumulation_steps, 2, config.batch_size, config.block_size)
    return stager(torch.device("cuda", 0))((x, y) for x, y in drawn.integers(256, size=shape))


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_is_compiled_after_the_first_evaluation(
    name: str,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, counts = TrainStep.evaluate, []

    def counted(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        counts.append(compiled())
        return found

    monkeypatch.setattr(TrainStep, "evaluate", counted)
    settings = {"dataset": str(corpus), "out_dir": str(tmp_path / "run"), "max_iters": 12}
    if name == "options":  # bytes have no end of text of their own
        settings["eot_id"] = ord("\n")
    config = config_of(**OPTIONS[name], **settings, eval_interval=3, compile=True)
    with connect("cuda", 60, needs_group(config)) as world:
        train(config, world, StopRequest())
    assert len(counts) == 4
    assert counts[0] > 0, "it compiles"
    measured.note(graphs_at_each_evaluation=counts)
    assert counts[-1] == counts[0]


@pytest.mark.parametrize("name", [*OPTIONS, "fp16"])
def test_no_operation_of_a_step_waits_for_the_device(name: str, measured: Measured) -> None:
    if SIMULATED and name == "options":
        pytest.skip("FlexAttention as plain operators waits, as it does on no GPU")
    changes = {"dtype": "float16"} if name == "fp16" else OPTIONS[name]
    config = config_of(**changes, eot_id=10, compile=True)
    with connect("cuda", 60, needs_group(config)) as world:
        train_step = make_step(config, world)
        for step in range(WARM_UP):
            train_step.step(step, micro_batches(config, step))
        tokens = micro_batches(config, WARM_UP)
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = train_step.step(WARM_UP, tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        measured.note(loss=result.loss, grad_norm=result.grad_norm)
        assert result.finite


def test_uploads_are_pinned_and_attention_is_flash(measured: Measured) -> None:
    config = config_of(compile=True)
    with connect("cuda", 60, needs_group(config)) as world:
        train_step = make_step(config, world)
        for step in range(WARM_UP):
            train_step.step(step, micro_batches(config, step)).loss  # noqa: B018, it is read
        with profiler(world.device) as profile:
            assert train_step.step(WARM_UP, micro_batches(config, WARM_UP)).loss > 0
    counts = {event.key: event.count for event in profile.key_averages()}
    attention = {name: count for name, count in counts.items() if "attention" in name}
    kernels = {name: count for name, count in counts.items() if "flash" in name}
    copies = {name: count for name, count in counts.items() if name.startswith("Memcpy")}
    measured.note(copies=copies, attention=attention, flash=kernels)

    up = {name: count for name, count in copies.items() if "HtoD" in name}
    down = {name: count for name, count in copies.items() if "DtoH" in name}
    measured.on_hardware(sum(up.values()) >= 1, "ids go up")
    measured.on_hardware(all("Pinned" in name for name in up), "every upload is pinned")
    measured.on_hardware(sum(down.values()) == 1, "one copy comes down in a step")
    measured.on_hardware(all("Pinned" in name for name in down), "it is pinned")
    has_flash = torch.cuda.get_device_capability() >= (8, 0)
    wanted = ("flash", "cudnn") if has_flash else ("efficient",)
    assert any(word in name for name in attention for word in wanted), attention
    assert not any("attention_math" in name for name in attention), attention
    measured.on_hardware(bool(kernels) or not has_flash, "flash kernels run")
