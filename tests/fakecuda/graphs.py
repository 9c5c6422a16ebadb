"""torch.cuda.CUDAGraph: what runs in a capture is noted, operator by operator, and replayed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_capturing: list["CUDAGraph"] = []


def capturing() -> "CUDAGraph | None":
    """The graph that is being captured."""
    return _capturing[-1] if _capturing else None


class Capture(TorchDispatchMode):
    """Notes each operator with its arguments and results."""

    def __init__(
        self,
        calls: list[tuple[Any, ...]],
        generators: list[torch.Generator],
    ) -> None:
        super().__init__()
        self.calls, self.generators = calls, generators

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op in WAITING or (op is torch.ops.aten.copy_.default and _is_pageable(args)):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        drawn_from = [each for each in kwargs.values() if isinstance(each, torch.Generator)]
        if any(each not in self.generators for each in drawn_from):
            raise RuntimeError("a CUDA generator is not in capture mode: it was not registered")
        results = op(*args, **kwargs)
        self.calls.append((op, args, kwargs, results))
        return results


def _is_pageable(copied: Any) -> bool:
    """Whether the host's side of a copy, if there is one, is not pinned."""
    return any(tensor.is_cpu and not tensor.is_pinned() for tensor in copied[:2])


WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class CUDAGraph:
    """The operators of a capture; replay() runs them over the same tensors."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.generators: list[torch.Generator] = []
        self.replays = 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Let the capture draw from a generator that is not the device's own."""
        self.generators.append(generator)

    def capture_begin(self, *_: object, **__: object) -> None:
        self.calls.clear()
        self.mode = Capture(self.calls, self.generators)
        self.mode.__enter__()
        _capturing.append(self)

    def capture_end(self) -> None:
        _capturing.remove(self)
        self.mode.__exit__(None, None, None)

    def replay(self) -> None:
        """Run each operator again, and write what it gives to where its results were."""
        assert self.calls, "nothing was captured"
        self.replays += 1
        with torch.no_grad():
            for op, args, kwargs, results in self.calls:
                again = op(*args, **kwargs)
                _write(results, again)

    def reset(self) -> None:
        self.calls.clear()

    def pool(self) -> tuple[int, int]:
        return 0, 0


def _write(where: Any, values: Any) -> None:
    """Fill the tensors `where` with `values`; views and results in place have theirs already."""
    if isinstance(where, torch.Tensor):
        if where.untyped_storage().data_ptr() != values.untyped_storage().data_ptr():
            where.copy_(values)
    elif isinstance(where, (tuple, list)):
        for here, value in zip(where, values, strict=True):
            _write(here, value)


@contextlib.contextmanager
def graph(cuda_graph: CUDAGraph, *_: object, **__: object) -> Iterator[None]:
    """Capture what is run in the block."""
    cuda_graph.capture_begin()
    try:
        yield
    finally:
        cuda_graph.capture_end()
