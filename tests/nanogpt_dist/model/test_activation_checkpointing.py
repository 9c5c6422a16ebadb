"""A block that keeps its input alone gives the same gradient, and is computed a second time."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.gpt import GPT
from tests.nanogpt_dist.small import ALL_OPTIONS

SMALL = ModelConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
IDS = torch.arange(32).view(2, 16)


OPTIONS = SMALL.model_copy(update={**ALL_OPTIONS, "zero_init": False, "eot_id": 7})


def gradients(mode: str | None, config: ModelConfig = SMALL) -> tuple[list[Tensor], list[int]]:
    """The gradient of every parameter, and how often each block was computed."""
    calls: list[int] = []

    def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        number = len(calls)
        calls.append(0)

        def counted(*inputs: Tensor) -> Tensor:
            calls[number] += 1
            return forward(*inputs)

        return counted if mode is None else checkpointed(counted, mode)

    model = GPT(config, wrap_block=wrap).init_weights(1)
    torch.manual_seed(2)
    _, loss = model(IDS, IDS.roll(-1, 1))
    assert loss is not None
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], calls


@pytest.mark.parametrize("config", [SMALL, OPTIONS], ids=["gpt2", "all options"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_the_gradient_is_the_same_to_the_bit_and_each_block_runs_twice(
    mode: str,
    config: ModelConfig,
) -> None:
    expected, once = gradients(None, config)
    found, twice = gradients(mode, config)
    assert once == [1, 1]
    assert twice == [2, 2]
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_gradients_nothing_is_kept_or_computed_again() -> None:
    model = GPT(SMALL, wrap_block=lambda forward: checkpointed(forward, "full")).init_weights(1)
    with torch.no_grad():
        assert torch.equal(model.eval().logits(IDS), GPT(SMALL).init_weights(1).eval().logits(IDS))


COUNT = """
import sys, torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.attention import flex_attention
from nanogpt_dist.model.positions import document_block_mask
from tests.fakecuda.device import real_compile

graphs = []

def keep(graph, inputs):
    graphs.append(graph)
    return make_boxed_func(graph.forward)

parts = {"fw_compiler": keep, "bw_compiler": keep}
backend = aot_autograd(**parts, partition_fn=min_cut_rematerialization_partition)
block = checkpointed(lambda x, mask: flex_attention(x, x, x, mask).sin(), sys.argv[1])
x = torch.randn(1, 2, 32, 16, device="cuda", requires_grad=True)
mask = document_block_mask(torch.zeros(1, 32, dtype=torch.int64, device="cuda"))
real_compile(block, backend=backend, dynamic=False)(x, mask).sum().backward()
wanted = torch.ops.higher_order.flex_attention
print(sum(node.target is wanted for graph in graphs for node in graph.graph.nodes))
"""


@pytest.mark.parametrize(("mode", "times"), [("full", 2), ("selective", 1)])
def test_selective_does_not_compute_flex_attention_again(
    mode: str,
    times: int,
    fake_gpu: Callable[..., dict[str, str]],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, mode],
        env={**os.environ, **fake_gpu()},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{times}\n", done.stderr


def test_compiling_a_selective_block_says_nothing(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._logging._internal.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("torch._higher_order_ops.wrap"), "level", logging.NOTSET)
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    weight = torch.ones(4, 4, requires_grad=True)
    run = torch.compile(checkpointed(lambda x: (x @ weight).relu(), "selective"), backend="eager")
    run(torch.ones(2, 4)).sum().backward()
    assert weight.grad is not None
    assert "in-place" not in caplog.text
