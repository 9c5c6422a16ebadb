"""Which functions compute a model's attention and loss: torch's own, or those made for CPUs.

The same weights and names either way. On a CPU in bfloat16 training takes CPU_KERNELS, and joins
micro-batches; in float32 it takes torch's, and is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.devices import total_memory_bytes
from nanogpt_dist.model import cpu_elementwise, cpu_kernels, head_loss
from nanogpt_dist.model.attention import Attention, attention, cpu_attention
from nanogpt_dist.model.head_loss import HeadLoss
from nanogpt_dist.model.positions import SequencePositions, rotate

ENOUGH_TOKENS = 4096  # in one pass: more of them make it no faster
MEMORY_SHARE = 0.25  # of the machine's memory, for what a pass keeps until its backward pass


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², of any shape."""
    return F.relu(x).square()


@dataclass(frozen=True)
class Kernels:
    """attention, rotate and squared_relu: of every block. head_loss: the loss alone, for training.

    head_loss None: with its logits.
    """

    attention: Attention = attention
    head_loss: HeadLoss | None = None
    rotate: Callable[[Tensor, SequencePositions], Tensor] = rotate
    squared_relu: Callable[[Tensor], Tensor] = squared_relu


TORCH_KERNELS = Kernels()


def training_kernels(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> Kernels:
    """The Kernels of a training pass in `dtype` on `device`; it always has a head_loss."""
    on_cpu = uses_cpu_kernels(config, device, dtype)
    loss = _head_loss(config, device, on_cpu)
    if not on_cpu:
        return Kernels(attention, loss)
    return Kernels(
        cpu_attention if has_plain_heads(config) else attention,
        loss,
        cpu_elementwise.rotate,
        cpu_elementwise.squared_relu,
    )


def _head_loss(config: TrainConfig, device: torch.device, on_cpu: bool) -> HeadLoss:
    if config.chunked_loss is not None:
        return head_loss.chunked if config.chunked_loss else head_loss.whole
    if on_cpu:
        return cpu_kernels.linear_cross_entropy
    return head_loss.by_size if device.type == "cuda" else head_loss.whole


def uses_cpu_kernels(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether training in `dtype` on `device` takes the kernels made for CPUs."""
    return (
        config.cpu_fast and not config.compile and device.type == "cpu" and dtype == torch.bfloat16
    )


def has_plain_heads(config: ModelConfig) -> bool:
    """Whether attention is causal, over as many keys as queries: else a CPU, too, takes torch's."""
    return not config.intra_document and config.kv_heads == config.n_head


def joined_batch_size(config: TrainConfig, ranks_here: int, memory_bytes: int | None = None) -> int:
    """Sequences in one pass of the CPU kernels at most: micro-batches are joined while they fit.

    memory_bytes: of the machine, all ranks_here together; None: of this one.

    The gradient of a step is the same sum. Larger products are faster, and weights are cast less
    often.
    """
    C, T = config.n_embd, config.block_size
    # Kept of a token until the backward pass: about 42 C bytes in each block, and the probabilities
    # of its heads.
    probabilities = config.n_head * min(T, cpu_kernels.LONGEST)
    bytes_per_token = config.n_layer * (42 * C + probabilities) + 8 * C
    memory_bytes = memory_bytes or total_memory_bytes(torch.device("cpu"))
    room = MEMORY_SHARE * memory_bytes / ranks_here / bytes_per_token
    return max(config.batch_size, int(min(room, ENOUGH_TOKENS) // T))
