"""The memory of one rank in a training step, by what takes it: bytes by arithmetic, no model built.

What a pass takes, and the letters, are in pass_memory.py; here is when how much of it is there
together. That a GPU's own libraries and its allocator take as much as ALLOWANCE_BYTES and SLACK say
is an assumption.
"""

from dataclasses import dataclass, fields, replace

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.pass_memory import (
    FP32,
    Pass,
    activation_bytes,
    block_bytes,
    count_parameters,
    cpu_head_bytes,
    forward_bytes,
    gathered_bytes,
    has_cpu_head,
    head_bytes,
    padded_block,
    stream_bytes,
    temporary_bytes,
    wide_width,
)

MOST = 2**25  # elements of matrices that Muon has whole at a time; in bf16 a buffer of 64 MiB

# CUDA's context, the kernels that are loaded as they are needed, and cuBLAS' workspaces; with
# several ranks NCCL's buffers, too
ALLOWANCE_BYTES, NCCL_BYTES = 1_500_000_000, 500_000_000
# Of the allowance, what a process has taken as soon as it asks the device how much is free. Source:
# github.com/pytorch/pytorch/issues/109888 (about 400 MB with kernels that are loaded lazily).
CONTEXT_BYTES = 400_000_000
SLACK = 0.06  # of all that is allocated: what the allocator cannot give out again, in pieces


@dataclass(frozen=True)
class Usage:
    """Bytes of one rank at the moment at which they are most.

    gathered: weights that fsdp has gathered, and its buffers. activations: what blocks keep.
    temporary: what the backward pass makes on its way. allowance: of CUDA, NCCL and the allocator.
    """

    weights: int
    moments: int
    gradients: int
    gathered: int = 0
    activations: int = 0
    head: int = 0
    temporary: int = 0
    allowance: int = 0

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def states(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.moments + self.gradients


def usage(config: TrainConfig, how: Pass, ranks: int) -> Usage:
    """The Usage of one rank, of `ranks` in all, where it is most; vocab_size must be set."""
    P = count_parameters(config).total
    mine = 0 if config.cpu_offload and how.cuda else -(-P // how.shard)  # parameters
    accumulates = how.micro_batches > 1
    # While micro-batches are summed up fsdp, too, has whole gradients; with one alone there are
    # none yet where activations are most.
    # ddp's first micro-batches give gradients beside its buckets, which the last puts them into
    gradients = FP32 * P * (how.buckets + accumulates)
    states = Usage(
        FP32 * mine, round(how.state_bytes * mine), gradients, gathered_bytes(config, how)
    )
    full = replace(states, activations=activation_bytes(config, how))
    head, block = head_bytes(config, how), temporary_bytes(config, how)
    # of fsdp's block: at the head it is the only one
    buffer = 0 if how.whole else how.low * padded_block(config, how)
    moments = [
        replace(full, temporary=forward_bytes(config, how)),
        replace(full, head=head, gathered=full.gathered - buffer),
        _evaluation(config, how, states),
    ]
    if how.whole:
        ends = _end_bytes(config, how, gradients > 0)
        moments += [replace(full, temporary=block), replace(states, temporary=ends + block)]
    else:
        moments += _sharded_blocks(config, how, full, block)
        moments += _sharded_ends(config, how, states, block)
    if how.whole and not how.compiled:
        moments.append(replace(states, temporary=_table_bytes(config, how, gradients > 0)))
    if config.optimizer == "adamw" and config.cautious_weight_decay:
        # its step keeps what the weights were
        held = FP32 * mine
        moments.append(replace(states, gradients=max(gradients, held), temporary=held, gathered=0))
    if config.optimizer == "muon":
        moments.append(_muon_step(config, how, replace(states, gathered=0), mine, ranks))
    if has_cpu_head(config, how) and how.whole and how.activation_checkpointing != "none":
        # autocast's copies of the blocks' weights last as long as the forward pass
        N = how.batch_size * config.block_size
        assert config.vocab_size is not None
        head, _ = cpu_head_bytes(N, config.vocab_size, config.n_embd, how.low, FP32)
        cast = how.low * config.n_layer * count_parameters(config).matrices
        moments.append(replace(full, head=head, temporary=cast))
    most = max(moments, key=lambda each: each.peak)
    if not how.cuda:
        return most
    allowance = ALLOWANCE_BYTES + (NCCL_BYTES if ranks > 1 else 0) + int(SLACK * most.peak)
    return replace(most, allowance=allowance)


def _muon_step(config: TrainConfig, how: Pass, states: Usage, mine: int, ranks: int) -> Usage:
    """What Muon's step takes: all gradients, and the matrices of one round with what they make.

    The updates, two factors of each, and what they come to; of all ranks that have a copy.
    """
    elements = config.n_layer * count_parameters(config).matrices
    most = min(elements, max(MOST, config.n_embd * max(config.mlp_width, config.n_embd)))
    copies = ranks // how.shard
    made = 4 * most + (min(copies * most, elements) if copies > 1 else 0)
    low = FP32 if how.dtype == torch.float16 else how.low
    return replace(states, gradients=max(states.gradients, FP32 * mine), temporary=low * made)


def _end_bytes(config: TrainConfig, how: Pass, added: bool) -> int:
    """Bytes of the gradients that are there, beside those of earlier passes, at the first block.

    added: each is added to an earlier one. A compiled backward pass gives all gradients together,
    at its end.
    """
    P = count_parameters(config)
    if how.compiled:
        return FP32 * P.total
    return 0 if added else FP32 * (P.total - P.matrices)


def _sharded_blocks(config: TrainConfig, how: Pass, full: Usage, block: int) -> list[Usage]:
    """fsdp's backward pass at its last block, and at the one before, while the last's is reduced.

    full: at the pass's start. block: temporary_bytes(). The head has left its weight's gradient.
    """
    assert config.vocab_size is not None
    tokens, C = how.batch_size * config.block_size, config.n_embd
    table = how.low * config.vocab_size * C
    kept = full.activations - tokens * (stream_bytes(how) + how.low) * C  # but the last norm's
    earlier = kept - tokens * block_bytes(config, how)
    return [
        replace(full, activations=kept, temporary=table + block),
        replace(full, activations=earlier, temporary=table + block + _reduced(config, how)),
    ]


def _reduced(config: TrainConfig, how: Pass) -> int:
    """Bytes of a block's gradients while they are reduced, as fsdp does in float32."""
    return FP32 * padded_block(config, how)


def _sharded_ends(config: TrainConfig, how: Pass, states: Usage, block: int) -> list[Usage]:
    """fsdp's backward pass at its second block, and at its end: the blocks' gradients are reduced.

    block: temporary_bytes(). What a rank keeps of them is its share; the root's are whole.
    cpu_offload: a share goes to the CPU at once.
    """
    assert config.vocab_size is not None
    P = count_parameters(config)
    table = how.low * config.vocab_size * config.n_embd  # gradient of the head
    whole = 0 if states.gradients == 0 else FP32  # of earlier micro-batches, while not reduced
    kept = 0 if config.cpu_offload and how.cuda else FP32
    behind = kept * max(0, P.total - P.root - 2 * P.block) // how.shard
    second = replace(
        states,
        gradients=whole * (P.root + 2 * P.block),
        temporary=behind + table + block + _reduced(config, how),
    )
    # What is reduced, in float32; beside it first what it is copied from, then the share that comes
    # of it, and gloo's copy
    beside = max(whole or how.low, FP32 / how.shard + (0 if how.cuda else FP32))
    reducing = replace(
        states,
        gradients=0,
        gathered=0,
        temporary=kept * (P.total - P.root) // how.shard + int((FP32 + beside) * P.root),
    )
    return [second, reducing]


def _table_bytes(config: TrainConfig, how: Pass, added: bool) -> int:
    """Bytes of all gradients at the end of an eager pass, with the token embedding's on the way.

    added: to earlier ones. A table that is the head, too, has two summands. In place they are
    added up where one is a copy: of a low type's, or of the CPU kernel's.
    """
    P = count_parameters(config).total
    assert config.vocab_size is not None
    table = FP32 * config.vocab_size * config.n_embd
    summands = (2 if how.low < FP32 else 3) if config.tie_embeddings else 1
    return summands * table + (0 if added else FP32 * P - table)


def _evaluation(config: TrainConfig, how: Pass, states: Usage) -> Usage:
    """What an evaluation takes, which is not compiled and keeps nothing.

    One block is at work, or the head.
    """
    assert config.vocab_size is not None
    T, C, V, low = config.block_size, config.n_embd, config.vocab_size, how.low
    squashed = config.logit_softcap is not None
    tokens = min(config.batch_size, how.batch_size) * T
    block = tokens * (2 * stream_bytes(how) * C + low * (wide_width(config) + config.mlp_width + C))
    cast = low * count_parameters(config).total if how.whole and low < FP32 else 0
    gradients = FP32 * count_parameters(config).total if how.buckets else 0
    # squashed in float32; the loss: of one window at a time
    head = tokens * V * (low + (2 * FP32 if squashed else 0)) + 12 * T * V
    normed = tokens * (stream_bytes(how) + low) * C  # what the last norm reads, and gives
    at_block = replace(states, gradients=gradients, activations=cast + block)
    at_head = replace(states, gradients=gradients, activations=cast + normed, head=head)
    return max(at_block, at_head, key=lambda each: each.peak)
