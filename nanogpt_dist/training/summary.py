"""What a run says before its first step: sizes, speed of the network, what nobody means."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt_dist.data.batches import Batches
from nanogpt_dist.devices import dtype_name, total_memory_bytes
from nanogpt_dist.distributed.layout import is_compiled
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.odd_settings import odd_settings
from nanogpt_dist.training.step import TrainStep


@dataclass(frozen=True)
class Summary:
    """What there is to say of a run that is about to start; start: the checkpoint it resumes."""

    run: Path
    train_step: TrainStep
    batches: Batches
    start: Path | None

    @property
    def epochs(self) -> float:
        """How often max_iters steps read the train split."""
        config, order = self.train_step.config, self.batches.order
        lengths = {piece.length for piece in config.ramp.pieces}
        return sum(
            config.ramp.sequences_before(config.max_iters, length) / order.of_length(length).windows
            for length in sorted(lengths)
        )

    def show(self, console: Console) -> None:
        """Print it; all ranks together."""
        world = self.train_step.world
        # over several nodes, whose network may be slow
        speed = world.all_reduce_speed() if world.size > world.local_size else None
        for line in self.lines(speed):
            console.line(line)

    def lines(self, all_reduce_speed: float | None = None) -> Iterator[str]:
        """Lines for people, warnings last; all_reduce_speed: in bytes/s, where there are nodes."""
        yield self._model()
        yield from self._batches()
        if line := self._memory():
            yield line
        if all_reduce_speed is not None:
            yield f"all-reduce between the ranks: {all_reduce_speed / 1e9:.2f} GB/s"
        yield f"{self.run}: " + (
            f"going on from {self.start.name}" if self.start else "starting at step 0"
        )
        config, n_vocab = self.train_step.config, self.batches.split.n_vocab
        if config.vocab_size is not None and config.vocab_size - 64 >= n_vocab:
            yield (
                f"note: {config.vocab_size - n_vocab:,} of {config.vocab_size:,} rows of the token "
                f"embedding are unused; --vocab-size {math.ceil(n_vocab / 64) * 64} would do"
            )
        for line in odd_settings(config, self.epochs):
            yield f"warning: {line}"

    def _model(self) -> str:
        step, world = self.train_step, self.train_step.world
        dtype = dtype_name(step.dtype, step.config.dtype)
        return (
            f"{step.model.num_params():,} parameters · {world.size} × {world.device.type} {dtype}, "
            f"{step.layout}, {counted(torch.get_num_threads(), 'thread')} each · "
            f"{step.config.dataset}: {self.batches.split.tokens:,} tokens, {self.epochs:.3g} epochs"
        )

    def _batches(self) -> Iterator[str]:
        """What a step reads; with a ramp of each of its pieces."""
        pieces, ranks = self.batches.pieces, counted(self.train_step.world.size, "rank")
        for piece in pieces:
            count, batch_size = self.batches.micro_batches(piece)
            yield (
                (f"from step {piece.first:,} on " if len(pieces) > 1 else "")
                + f"{piece.tokens:,} tokens a step = {ranks} × "
                + f"{counted(count, 'micro-batch', 'es')} × {counted(batch_size, 'sequence')} × "
                + f"{piece.length}"
            )
        device = self.train_step.world.device.type
        if len(pieces) > 1 and is_compiled(self.train_step.config, device):
            yield "note: each of these shapes is compiled for itself, when its first step comes"

    def _memory(self) -> str | None:
        """What a GPU is expected to hold, by which layout and micro-batch were chosen."""
        layout, device = self.train_step.layout, self.train_step.world.device
        if device.type != "cuda" or layout.usage is None:
            return None
        usage, total = layout.usage, total_memory_bytes(device)
        return (
            f"memory: about {usage.peak / 1e9:.1f} of {total / 1e9:.1f} GB on each GPU, "
            f"{usage.states / 1e9:.1f} of them weights, gradients and optimizer state; "
            f"activation checkpointing: {layout.activation_checkpointing}"
        )


def counted(number: int, what: str, plural: str = "s") -> str:
    """`number` and `what`, which gets the ending `plural` unless it is one: 1 rank, 2 ranks."""
    return f"{number:,} {what}{'' if number == 1 else plural}"
