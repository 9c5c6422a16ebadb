"""One decode step in static shapes, which CUDA records once and replays.

A step of a small model is some hundred kernels of a few microseconds each; to begin them one by one
takes longer than they run. A recorded graph begins them all at once. Its shapes and addresses are
fixed: ids and positions stand in two tensors, the caches are of one size, of which a step attends
to the first S by a mask, and each S has a graph of its own.

torch.compile would do as much, and fuse more, but takes half a minute before the first token; a
graph takes as long as two steps.

Shape letters: B rows, S tokens that are attended to, V ids that the tokenizer has.

Source: PyTorch's documentation, "CUDA semantics", on CUDA graphs (warm-up on a side stream).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST = 256  # least S; then twice that, and so on
ENOUGH_STEPS = 16  # with fewer ahead, the graph costs more than it saves

# ids (B,), positions of them (B,), S → logits (B, V); nothing in it may read from the device
Forward = Callable[[Tensor, Tensor, int], Tensor]


def cache_length(tokens: int, block_size: int) -> int:
    """How many tokens a cache is made for, or S, so that it has room for `tokens`."""
    length = SHORTEST
    while length < tokens:
        length *= 2
    return min(length, block_size)


@dataclass(frozen=True)
class _Recorded:
    graph: "torch.cuda.CUDAGraph"
    logits: Tensor  # (B, V), where a replay writes


class StaticStep:
    """The decode step of rows that are drawn together, on one GPU.

    size: tokens that the caches have room for. record: whether to make graphs; else each step is
    begun kernel by kernel, with the same result.
    """

    def __init__(self, rows: int, size: int, device: torch.device, record: bool) -> None:
        self.size, self.device, self.record = size, device, record
        self.ids, self.last = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.recorded: dict[int, _Recorded] = {}

    def begin(self, lengths: list[int]) -> None:
        """Rows hold so many tokens; the next step adds one to each."""
        self.last.copy_(torch.tensor(lengths) - 1)

    def __call__(self, forward: Forward, ids: Tensor, longest: int, left: int) -> Tensor:
        """Logits (B, V) after ids (B,), with which the longest row has `longest` tokens.

        forward: the step, of the same caches each time. left: steps that are to follow, until all
        rows are full at the most.
        """
        self.ids.copy_(ids)
        # a row that is full stays at the last place: what is computed for it is not used
        self.last.add_(1).clamp_(max=self.size - 1)
        S = cache_length(longest, self.size)
        if S not in self.recorded:
            ahead = left if self.size == S else min(S - longest, left)
            if not self.record or ahead < ENOUGH_STEPS:
                return forward(self.ids, self.last, S)
            self.recorded[S] = self._recording(forward, S)
        recorded = self.recorded[S]
        recorded.graph.replay()
        return recorded.logits.clone()  # the next replay overwrites them

    def _recording(self, forward: Forward, S: int) -> _Recorded:
        """The graph of a step; run once before, it leaves in the caches what its replay writes."""
        with torch.cuda.device(self.device):
            now, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(now)
            with torch.cuda.stream(aside):
                forward(self.ids, self.last, S)  # libraries get their handles and workspaces
            now.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # another thread may go on using the GPU
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                logits = forward(self.ids, self.last, S)
        return _Recorded(graph, logits)
