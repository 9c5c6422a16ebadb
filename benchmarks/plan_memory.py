"""The memory that a training is expected to take, beside what it takes: on this CPU, in processes of
its own; and what torch's own tracker counts on shapes alone, of all presets on up to 1,024 GPUs.

    python benchmarks/plan_memory.py                    # 24 trainings, then the presets: half an hour
    python benchmarks/plan_memory.py --part cpu --only fsdp

cpu: each training is of three steps, in 1, 2 or 4 processes of its own, after one of a single layer,
which loads the kernels. `process` is what the resident size of rank 0 grew by at most (VmHWM over
VmRSS) where malloc gives back what is freed, which in training it keeps. `tensors`, of one process
alone, is the most that torch's CPU allocator has given out at a time, by its profiler, which does
not see what gloo's threads free.
tracker: see tracked() below. Each ratio is the expected over the measured. Linux only. Prints one
JSON object, and a table on stderr.
"""  # noqa: E501

import argparse
import contextlib
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHAPE = {
    "n_layer": 8,
    "n_head": 6,
    "n_embd": 384,
    "block_size": 256,
    "vocab_size": 8192,
    "batch_size": 2,
    "join_micro_batches": False,
}
LAYOUTS = (("single", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 4))
DTYPES = ("float32", "bfloat16")
MODES = ("none", "selective", "full")
STEPS = 3  # after the first DDP makes its buckets anew, which the second one fills
Case = dict[str, Any]


def cases() -> Iterator[Case]:
    """Every layout in both types and with each checkpointing; one micro-batch of a rank, or two."""
    for strategy, ranks in LAYOUTS:
        for dtype in DTYPES:
            for mode in MODES:
                passes = 2 if (mode, ranks) == ("none", 2) else 1
                yield {
                    "strategy": strategy,
                    "ranks": ranks,
                    "dtype": dtype,
                    "activation_checkpointing": mode,
                    "gradient_accumulation_steps": ranks * passes,
                }


def name_of(case: Case) -> str:
    """What a case is called, and found by with --only."""
    passes = case["gradient_accumulation_steps"] // case["ranks"]
    mode = case["activation_checkpointing"]
    return f"{case['strategy']} {case['ranks']} {case['dtype']} {mode} {passes}"


# ---- the parent: starts ranks, and compares


def on_ranks(case: Case) -> dict[str, int]:
    """What rank 0 of the case's processes says of it."""
    ranks = case["ranks"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        environment |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"OMP_NUM_THREADS": 1}
        started.append(
            subprocess.Popen(
                [sys.executable, __file__, "--as-rank", json.dumps(case)],
                env={**os.environ, **{name: str(value) for name, value in environment.items()}},
                stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                stderr=subprocess.DEVNULL if rank else None,
                text=True,
            )
        )
    said, _ = started[0].communicate()
    if any(process.wait() for process in started):
        sys.exit("a rank failed")
    return json.loads(said)  # type: ignore[no-any-return]


def measured_on_cpu(only: str) -> list[dict[str, Any]]:
    """A row of each case whose name has `only`."""
    rows = []
    for case in cases():
        if only in name_of(case):
            found = on_ranks(case)
            rows.append({"case": name_of(case), **found, **ratios(found)})
            print(line_of(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ratios(found: dict[str, int]) -> dict[str, float]:
    """The expected bytes over each of the measured."""
    names = [name for name in found if name != "expected"]
    return {f"{name}_ratio": round(found["expected"] / found[name], 4) for name in names}


def line_of(row: dict[str, Any]) -> str:
    """A row of the table for people: megabytes, and in brackets by how much less is expected."""
    cells = [f"{row['case']:<34}", f"expected {row['expected'] / 1e6:8.1f}"]
    for name in row:
        if f"{name}_ratio" in row:
            off = 100 * (row[f"{name}_ratio"] - 1)
            cells.append(f"{name} {row[name] / 1e6:8.1f} ({off:+5.1f} %)")
    return "  ".join(cells)


# ---- a rank: trains, and looks at itself


def as_rank(case: Case) -> None:
    """Measure the case; rank 0 prints a line of JSON."""
    from nanogpt_dist.config import resolve
    from nanogpt_dist.distributed.world import connect

    give_back_memory()
    alone = case["strategy"] == "single"
    with connect("cpu", timeout_s=120, group=not alone) as world:
        config = resolve({**SHAPE, **{name: case[name] for name in case if name != "ranks"}})
        train(config.model_copy(update={"n_layer": 1}), world)
        process, expected = grown(lambda: train(config, world))
        found = {"expected": expected, "process": process}
        if alone:
            found["tensors"] = tensors(lambda: train(config, world))
        if world.is_rank0:
            print(json.dumps(found), flush=True)
        os._exit(0)  # without gloo's teardown


class Ids:
    """A split of random ids."""

    def __init__(self, ids: Any) -> None:
        self.ids = ids

    def read(self, start: int, count: int) -> Any:
        return self.ids[start : start + count]


def train(config: Any, world: Any) -> int:
    """Make STEPS steps and an evaluation; returns the bytes that are expected of a rank."""
    import numpy as np

    from nanogpt_dist.devices import pick_dtype
    from nanogpt_dist.distributed.strategy import plan_layout
    from nanogpt_dist.evaluation.loss import Evaluator, spread
    from nanogpt_dist.training.optim import training_bytes
    from nanogpt_dist.training.step import TrainStep

    layout = plan_layout(config, world, training_bytes(config))
    dtype = pick_dtype(config.dtype, world.device)
    train_step = TrainStep(config, world, layout, dtype)
    B, T, V = layout.batch_size, config.block_size, config.vocab_size
    windows = B * world.size
    ids = np.random.default_rng(0).integers(0, V, windows * T + 1)
    rows = ids[: B * T].reshape(B, T)
    for step in range(STEPS):
        train_step.step(step, [(rows, rows)] * (config.global_batch_size // windows))
    lengths = np.ones(V, np.int64)
    where = spread(len(ids), T, windows)
    train_step.evaluate(Evaluator(Ids(ids), where, lengths, world, config.batch_size, dtype))
    assert layout.usage is not None
    return layout.usage.peak


def give_back_memory() -> None:
    """Have malloc map each larger block by itself, and give it back when it is freed.

    In training it keeps them: what lies between them would be measured, too.
    """
    from nanogpt_dist.devices import keep_memory

    keep_memory()  # once in a process, and so not again
    libc, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = ctypes.CDLL(None), -1, -3, -4
    for name, value in ((M_TRIM_THRESHOLD, 2**16), (M_MMAP_THRESHOLD, 2**16), (M_MMAP_MAX, 2**20)):
        libc.mallopt(name, value)


def grown(work: Callable[[], int]) -> tuple[int, int]:
    """Bytes by which this process is larger at most while at `work`, and its result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    result = work()
    return status_bytes("VmHWM") - before, result


def status_bytes(name: str) -> int:
    """One of the sizes that the kernel knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def tensors(work: Callable[[], int]) -> int:
    """Bytes that torch's CPU allocator has given out at most while at `work`."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as made:
        work()
    now = most = 0
    for event in made.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# ---- torch's tracker, on shapes alone


def measured_by_tracker(only: str, all_ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row of each preset and number of GPUs, ddp or fsdp, whose name has `only`."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rows = []
    for ranks in all_ranks:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        for name, settings in distinct_presets():
            for strategy, mode in TRACKED[ranks]:
                case = f"{name} {ranks} {strategy} {mode}"
                if only in case:
                    found = tracked({**settings, "activation_checkpointing": mode}, strategy, ranks)
                    rows.append({"case": case, **found, **ratios(found)})
                    print(line_of(rows[-1]), file=sys.stderr, flush=True)
        dist.destroy_process_group()
    return rows


TRACKED = {
    8: (("ddp", "none"), ("fsdp", "selective")),
    64: (("fsdp", "none"),),
    1024: (("fsdp", "full"),),
}


def distinct_presets() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and settings of each preset whose model no earlier one has."""
    from nanogpt_dist.load_config import load, with_vocabulary
    from nanogpt_dist.presets import PRESETS

    seen = []
    for name in PRESETS:
        config = with_vocabulary(load(name))
        made = config.architecture(), config.batch_size, config.optimizer
        if made not in seen:
            seen.append(made)
            yield name, config.model_dump()


def tracked(settings: dict[str, Any], strategy: str, ranks: int) -> dict[str, int]:
    """Bytes of a rank at most, by torch's memory tracker, and those that are expected.

    Fake tensors over a fake process group; the pass is CUDA's, not compiled, with torch's own loss.
    Two steps of one micro-batch, and an evaluation. DDP's reducer orders its buckets anew by what
    real gradients do, which is left out.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker

    from nanogpt_dist.config import TrainConfig
    from nanogpt_dist.distributed import fsdp
    from nanogpt_dist.distributed.memory import usage
    from nanogpt_dist.distributed.pass_memory import Pass
    from nanogpt_dist.distributed.strategy import _groups, reshard
    from nanogpt_dist.distributed.world import World
    from nanogpt_dist.model.activation_checkpointing import checkpointed
    from nanogpt_dist.model.gpt import GPT
    from nanogpt_dist.model.head_loss import whole as whole_loss
    from nanogpt_dist.model.kernels import Kernels
    from nanogpt_dist.training.optim import make_optimizer, state_bytes

    changes = {"optimizer": "adamw", "gradient_accumulation_steps": ranks}
    config = TrainConfig(**{**settings, **changes, "batch_ramp": None, "chunked_loss": False})
    device, low, mode = torch.device("cpu"), torch.bfloat16, config.activation_checkpointing
    world, whole = World(0, 0, ranks, device, None), strategy == "ddp"
    share_out = None if whole else fsdp.sharder(config, 1, ranks, world, low)
    wrap = None if mode == "none" else lambda forward: checkpointed(forward, mode)
    B, T = config.batch_size, config.block_size
    with FakeTensorMode(), cuda_dropout():
        model = GPT(config.architecture(), None, Kernels(flash_attention, whole_loss), wrap)
        called: Any = in_buckets(model) if whole else model
        if share_out is not None:
            for _, group in _groups(model):
                share_out(group)
        optimizer = make_optimizer(model, config, world, low)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # DTensor makes each operator once on fakes of whole tensors: no memory
        optimizer.zero_grad(set_to_none=True)
        ids = torch.zeros(B, T, dtype=torch.int64)
        tracker = MemTracker() if whole else FSDPMemTracker(model, optimizer)
        if whole:
            tracker.track_external(model, optimizer)
        else:
            tracker.track_inputs((ids,))
        with tracker:
            for _step in range(2):
                with torch.autocast("cpu", low, enabled=whole):
                    _, loss = called(ids, ids)
                loss.backward()
                del _, loss
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                tracker.reset_mod_stats()
            evaluate(model, ids, whole)
            reshard(model)
        found = tracker.get_tracker_snapshot("peak")
    how = Pass(whole, whole, 1 if whole else ranks, mode, B, 1, low, False, state_bytes(config))
    expected = usage(config, how, ranks)
    measured = sum(parts["Total"] for parts in found.values())
    return {"expected": expected.peak - expected.allowance, "tracker": measured}


@contextlib.contextmanager
def cuda_dropout() -> Iterator[None]:
    """CUDA's dropout keeps a mask of a byte; that of a CPU has the type of the numbers."""
    import torch
    import torch.nn.functional as F

    def native(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(x, p, training)[0] if training and p else x

    plain, F.dropout = F.dropout, native
    try:
        yield
    finally:
        F.dropout = plain


def flash_attention(
    q: Any, k: Any, v: Any, mask: Any, dropout_p: float = 0.0, window: int | None = None
) -> Any:
    """CUDA's flash kernel, of which only the shapes are there: with a window they are the same."""
    import torch

    assert mask is None
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, True)[0]


def in_buckets(model: Any) -> Any:
    """`model` under DDP, whose buckets nobody reduces."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    class Reducer:
        """DDP's, but for the order of its buckets."""

        def __init__(self, reducer: Any) -> None:
            self.reducer = reducer

        def __getattr__(self, name: str) -> Any:
            return getattr(self.reducer, name)

        def _rebuild_buckets(self) -> bool:
            return False

    def reduced(_, bucket):  # type: ignore[no-untyped-def]
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)
    wrapped.register_comm_hook(None, reduced)
    wrapped.reducer = Reducer(wrapped.reducer)
    return wrapped


def evaluate(model: Any, ids: Any, whole: bool) -> None:
    """An evaluation's batch, as evaluation/loss.py goes about it."""
    import torch
    import torch.nn.functional as F

    model.eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=whole):
            logits = model.logits(ids)
        pairs = zip(logits, ids, strict=True)
        each = [F.cross_entropy(window.float(), ids, reduction="sum") for window, ids in pairs]
        torch.stack(each)
    model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("cpu", "tracker"), help="one of the two alone")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--ranks", type=int, nargs="+", default=sorted(TRACKED), help="of tracker")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_rank:
        with contextlib.suppress(BrokenPipeError):
            as_rank(json.loads(given.as_rank))
        return
    report: dict[str, Any] = {}
    if given.part != "tracker":
        report["cpu"] = measured_on_cpu(given.only)
    if given.part != "cpu":
        report["tracker"] = measured_by_tracker(given.only, tuple(given.ranks))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
