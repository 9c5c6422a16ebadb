"""What torch.compile is given of a model in training: all of it, or its blocks and its loss.

single and ddp compile the model as one graph, which ddp cuts at its buckets, so that gradients are
reduced while the backward pass goes on. Under fsdp the gathering between the blocks cannot be
compiled: each block is a graph, the same for all of them, and so is the loss. ddp does likewise
where a block has operators within operators (checkpointing, FlexAttention), at which its cuts fail
before torch 2.13.

Evaluation and sampling run the same functions as they stand, so that neither their shapes nor
their modes make anything be compiled again.

Source: Ansel et al. 2024, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
Transformation and Graph Compilation".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout, is_compiled
from nanogpt_dist.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Compilation:
    """parts: what is compiled: nothing, model, or blocks (and the loss). mode: torch.compile's."""

    parts: str
    mode: str

    def part(self, function: F) -> F:
        """A block's forward or the loss, compiled for training where it is a part of its own."""
        if self.parts != "blocks":
            return function
        compiled = self._compile(function)

        def run(*inputs: Any) -> Any:
            return (compiled if torch.is_grad_enabled() else function)(*inputs)

        return run  # type: ignore[return-value]

    def model(self, model: nn.Module) -> nn.Module:
        """What to call for a training pass of the whole model."""
        if self.parts != "model":
            return model
        compiled = self._compile(model)
        return CudaGraphs(compiled, model) if self.mode == "reduce-overhead" else compiled

    def _compile(self, function: Any) -> Any:
        mode = None if self.mode == "default" else self.mode
        return torch.compile(function, dynamic=False, mode=mode)


def plan_compilation(config: TrainConfig, layout: Layout, device: torch.device) -> Compilation:
    """The Compilation of a training on `device`. Raises ConfigError."""
    if not is_compiled(config, device.type):
        if config.compile_mode != "default":
            raise ConfigError(
                f"--compile-mode {config.compile_mode} needs --compile: add it, or leave "
                "--compile-mode out"
            )
        return Compilation("nothing", "default")
    import torch._dynamo.config as dynamo

    # a ramp's shapes are compiled each for itself, and are not too many
    dynamo.recompile_limit = max(dynamo.recompile_limit, 7 + len(config.ramp.pieces))
    strategy = layout.strategy
    flex = config.intra_document or config.shortest_window is not None
    nested = layout.activation_checkpointing != "none" or flex
    parts = "blocks" if strategy == "fsdp" or (strategy == "ddp" and nested) else "model"
    if parts == "blocks" and config.compile_mode == "reduce-overhead":
        raise ConfigError(
            f"--compile-mode reduce-overhead is for a model compiled as a whole, {strategy} "
            "compiles its blocks here: leave --compile-mode out"
        )
    if strategy == "ddp":
        # a block that is compiled by itself has no bucket's border within
        dynamo.optimize_ddp = parts == "model"
    return Compilation(parts, config.compile_mode)


class CudaGraphs(nn.Module):
    """A compiled model that is replayed from CUDA graphs, whose memory each pass writes anew.

    So parameters have gradients of their own from the start, to which each pass adds: the first
    one's would be the graph's memory, and lost with the second.
    """

    def __init__(self, compiled: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.compiled = compiled
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def forward(self, *inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*inputs)


def keeps_gradients(wrapped: nn.Module) -> bool:
    """Whether gradients are set to zero between steps, and not dropped."""
    return any(isinstance(module, CudaGraphs) for module in wrapped.modules())
