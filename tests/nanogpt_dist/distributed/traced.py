"""Bytes of a training pass, measured on shapes alone: what pass_memory.py's formulas are held to.

Eager: the pass runs on fake tensors, and each storage is counted from when it is made to when it is
dropped. Compiled: Inductor's own partition of the pass into forward and backward says what the one
keeps for the other. Attention is the kernel that CUDA takes.
"""

import contextlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model import head_loss
from nanogpt_dist.model.activation_checkpointing import checkpointed
from nanogpt_dist.model.gpt import GPT, Block, BlockForward
from nanogpt_dist.model.kernels import Kernels
from nanogpt_dist.model.positions import with_rotary_angles


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    dropout_p: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """CUDA's flash kernel, of which here only the shapes are there."""
    assert mask is None
    assert window is None
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, True)[0]


KERNELS = Kernels(flash_attention, head_loss.whole)


def wrapper(mode: str) -> Callable[[BlockForward], BlockForward] | None:
    """What a block's forward is run through, for this activation checkpointing."""
    return None if mode == "none" else lambda forward: checkpointed(forward, mode)


def autocast(low: torch.dtype) -> AbstractContextManager[Any]:
    """Products in `low`."""
    return contextlib.nullcontext() if low == torch.float32 else torch.autocast("cpu", low)


# ---- eager


class Storages(TorchDispatchMode):
    """Counts the bytes of the storages that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self.now -= size


def eager_peak(
    config: ModelConfig, mode: str, low: torch.dtype, batch_size: int, passes: int
) -> int:
    """Bytes at most in the second step of a whole model: `passes` micro-batches, then AdamW."""
    with FakeTensorMode(), Storages() as storages:
        model = GPT(config, kernels=KERNELS, wrap_block=wrapper(mode))
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=True)
        for step in range(2):
            if step == 1:
                storages.most = storages.now
            for _ in range(passes):
                ids = torch.zeros(batch_size, config.block_size, dtype=torch.int64)
                with autocast(low):
                    _, loss = model(ids, ids)
                loss.backward()
                del loss, _
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return storages.most


# ---- compiled


class _PartitionedError(Exception):
    """The pass is in two parts; nothing more of the compiler is wanted."""


def kept_by_compiled(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Bytes that the compiled `function` keeps of its own for its backward pass.

    Beside its inputs and parameters.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import partition_fn
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V

    parts: list[fx.GraphModule] = []

    def partition(joint: fx.GraphModule, examples: Any, **options: Any) -> Any:
        with V.set_fake_mode(detect_fake_mode(examples)):
            parts.extend(partition_fn(joint, examples, **options))
        raise _PartitionedError

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=lambda graph, _: graph,
        partition_fn=partition,
        decompositions=select_decomp_table,
    )
    with contextlib.suppress(Exception):  # dynamo wraps it
        torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    forward, _ = parts
    return sum(_storage_bytes(forward))


VIEWS = ("view", "permute", "transpose", "reshape", "expand", "slice", "select", "split")
VIEWS += ("split_with_sizes", "squeeze", "unsqueeze", "t", "_unsafe_view", "alias", "getitem")


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _owner(node: fx.Node) -> fx.Node:
    """The node whose storage `node` is a view of."""
    while node.op == "call_function" and _name(node) in VIEWS:
        given = node.args[0]
        assert isinstance(given, fx.Node)
        # one of several results of a kernel has a storage of its own
        if _name(node) == "getitem" and not _name(given).startswith("split"):
            break
        node = given
    return node


def _storage_bytes(forward: fx.GraphModule) -> list[int]:
    """Bytes of each storage that the forward pass gives to the backward pass, once."""
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    owners = {_owner(node) for node in output.args[0][1:] if isinstance(node, fx.Node)}
    values = [node.meta.get("val") for node in owners if node.op == "call_function"]
    # a generator's state, kept for what is computed again, has no size that is known here
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [tensor.nbytes for tensor in tensors if not tensor._has_symbolic_sizes_strides]


def compiled_block(config: ModelConfig, mode: str, low: torch.dtype, batch_size: int) -> int:
    """Bytes that one block, compiled by itself with weights in `low`, keeps with its input."""
    with torch.device("meta"):
        block = Block(config, KERNELS, wrapper(mode))
    block = block.to(low).to_empty(device="cpu")
    shape = batch_size, config.block_size, config.n_embd
    x = torch.empty(shape, dtype=low, requires_grad=True)
    positions = with_rotary_angles(torch.arange(config.block_size), config)

    def run(x: Tensor, x0: Tensor) -> Tensor:
        read = x0 if config.residual_scalars else None
        return block(x, positions if config.rotary else None, read)

    return kept_by_compiled(run, x, x.detach().clone().requires_grad_()) + x.nbytes


def compiled_model(config: ModelConfig, mode: str, low: torch.dtype, batch_size: int) -> int:
    """Bytes that the compiled whole model keeps, with its token ids and targets."""
    with torch.device("meta"):
        model = GPT(config, kernels=KERNELS, wrap_block=wrapper(mode))
    model = model.to_empty(device="cpu").tie()
    ids = torch.zeros(batch_size, config.block_size, dtype=torch.int64)

    def run(ids: Tensor, targets: Tensor) -> Tensor:
        with autocast(low):
            return model(ids, targets)[1]

    return kept_by_compiled(run, ids, ids) + 2 * ids.nbytes
