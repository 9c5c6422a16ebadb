"""The fake GPU itself: what it refuses, what it counts, and that its copies are CUDA's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FakeGpu = Callable[..., dict[str, str]]

PARTS = {
    "two devices": """
        refused("at least two devices", lambda: cuda @ cpu)
        refused("at least two devices", lambda: cuda + cuda.to("cuda:1"))
        refused("at least two devices", lambda: torch.zeros(()).add_(cuda.sum()))
        assert (cuda + torch.tensor(1.0)).device == cuda.device  # a number may be the host's
    """,
    "a generator of the CPU": """
        generator = torch.Generator()
        refused("generator", lambda: torch.randn(3, device="cuda", generator=generator))
        torch.randn(3, device="cuda", generator=torch.Generator("cuda"))
    """,
    "numpy of a tensor on the device": """
        refused("can't convert cuda:0", lambda: cuda.numpy())
    """,
    "whole numbers are not multiplied as matrices": """
        whole = torch.ones(2, 2, dtype=torch.int64, device="cuda")
        refused("not implemented for 'Long'", lambda: whole @ whole)
    """,
    "cuBLAS is not deterministic unless it is told": """
        torch.use_deterministic_algorithms(True)
        refused("CUBLAS_WORKSPACE_CONFIG", lambda: cuda @ cuda)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        cuda @ cuda
    """,
    "memory is counted": """
        gib = 2**30
        before = torch.cuda.memory_allocated()
        big = torch.empty(gib, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() - before == gib
        free, total = torch.cuda.mem_get_info()
        assert total == 80 * 10**9
        assert total - free == torch.cuda.memory_allocated()
        del big
        assert torch.cuda.memory_allocated() == before
        assert torch.cuda.max_memory_allocated() == before + gib
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == before
        assert torch.cuda.memory_allocated(1) == 0
    """,
    "memory has an end": """
        try:
            torch.empty(81 * 10**9, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            assert "CUDA out of memory" in str(error)
        else:
            raise AssertionError("81 GB found room in 80")
    """,
    "a storage is freed and comes back": """
        storage = cuda.untyped_storage()
        before = torch.cuda.memory_allocated()
        storage.resize_(0)
        assert torch.cuda.memory_allocated() == before - 512
        storage.resize_(16)
        assert torch.cuda.memory_allocated() == before
        cuda.fill_(2.0)
        assert cuda.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    """,
    "a late copy to the host is there after the wait": """
        host = torch.zeros(2, 2, pin_memory=True)
        event = torch.cuda.Event()
        host.copy_(cuda, non_blocking=True)
        event.record()
        assert host.isnan().all()  # not yet
        assert not event.query()
        assert event.query()
        assert host.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    """,
    "a pinned buffer may not be written while it is copied": """
        buffer = torch.ones(4, pin_memory=True)
        there = buffer.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert "race" not in kinds()
        there = buffer.to("cuda", non_blocking=True)
        buffer.zero_()
        torch.cuda.synchronize()
        assert "race" in kinds()
    """,
    "copies and reads are noted": """
        record.happenings.clear()
        x = torch.ones(3, 4)[:, :2].to("cuda")
        x.sum().item()
        x.tolist()
        torch.cuda.synchronize()
        up, item, down, sync = record.happenings
        assert (up.kind, up.bytes, up.contiguous, up.pinned) == ("up", 24, False, False)
        assert (item.kind, down.kind, down.bytes, sync.kind) == ("item", "down", 24, "sync")
        assert up.waits and item.waits and down.waits and sync.waits
    """,
    "set_sync_debug_mode": """
        torch.cuda.set_sync_debug_mode("error")
        refused("synchronizing", lambda: cuda.sum().item())
        refused("synchronizing", lambda: cuda.cpu())
        refused("synchronizing", lambda: cuda[cuda > 0])
        torch.ones(2, pin_memory=True).to("cuda", non_blocking=True)
        torch.cuda.set_sync_debug_mode("default")
        cuda.sum().item()
    """,
    "pinned memory is of the thread's current device": """
        import threading
        torch.cuda.set_device(1)
        record.happenings.clear()
        torch.empty(1, pin_memory=True)
        thread = threading.Thread(target=lambda: torch.empty(1, pin_memory=True))
        thread.start(); thread.join()
        assert [each.device for each in record.happenings] == [1, 0]
    """,
    "dropout draws what the CPU draws": """
        torch.manual_seed(7)
        here = torch.rand(5)
        assert torch.rand(5, device="cuda").tolist() == here.tolist()
        with torch.random.fork_rng():
            torch.rand(5, device="cuda")
        assert torch.rand(5, device="cuda").tolist() == torch.rand(5).tolist()
    """,
    "attention is flash attention, forward and backward": """
        from torch.nn.functional import scaled_dot_product_attention as attention
        for dtype, name in ((torch.bfloat16, "Flash"), (torch.float32, "Efficient")):
            q = torch.randn(2, 3, 8, 16, dtype=dtype)
            here, there = (q.clone().to(d).requires_grad_() for d in ("cpu", "cuda"))
            y = attention(there, there, there, is_causal=True)
            assert y.grad_fn.name() == f"ScaledDotProduct{name}AttentionBackward0"
            y.float().square().sum().backward()
            attention(here, here, here, is_causal=True).float().square().sum().backward()
            assert torch.equal(there.grad.cpu(), here.grad)
    """,
    "a graph replays what was captured": """
        x, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x * 2).view(3, 1) + 1
            x.add_(1)
        x.fill_(5)
        graph.replay()
        assert y.flatten().tolist() == [11.0, 11.0, 11.0]
        assert x.tolist() == [6.0, 6.0, 6.0]
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            refused("capturing", lambda: x.sum().item())
            refused("capturing", lambda: x.copy_(torch.ones(3)))
            generator = torch.Generator("cuda")
            refused("not in capture mode", lambda: x.normal_(generator=generator))
    """,
    "torch.compile": """
        compiled = torch.compile(lambda x: (x * 2).sum(), mode="reduce-overhead")
        x = cuda.clone().requires_grad_()
        compiled(x).backward()
        assert x.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]
        (asked,) = [each.what for each in record.happenings if each.kind == "compile"]
        assert asked == '{"mode": "reduce-overhead"}'
    """,
}

PREAMBLE = """
import os, textwrap
import torch
from tests.fakecuda import record
cpu, cuda = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
def refused(words, call):
    try:
        call()
    except (RuntimeError, TypeError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")
def kinds():
    return {each.kind for each in record.happenings}
"""


@pytest.fixture(scope="module")
def outcomes(fake_gpu: FakeGpu) -> dict[str, str]:
    """What became of each part, in a process of its own: they are forked from one."""
    code = (
        PREAMBLE
        + f"""
import sys, traceback
for name, part in {PARTS!r}.items():
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            exec(textwrap.dedent(part), dict(globals()))
            print(chr(10) + name, "as it should", sep=": ", flush=True)
        except BaseException:
            error = traceback.format_exc().replace(chr(10), " | ")
            print(chr(10) + name, error, sep=": ", flush=True)
        os._exit(0)
    os.wait()
"""
    )
    environment = {**os.environ, **fake_gpu()}
    environment.pop("CUBLAS_WORKSPACE_CONFIG", None)  # another test's
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return {line[0]: line[1] for line in lines if line[0] in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_the_fake_gpu(part: str, outcomes: dict[str, str]) -> None:
    assert outcomes[part] == "as it should"


def test_a_library_that_cannot_be_built_is_a_reason_to_skip(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.fakecuda import build

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.CannotBuildError, match=r"no g\+\+"):
        build.library()


def test_a_torch_with_cuda_is_a_reason_to_skip(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It registers its own device: there can be no two."""
    from tests.fakecuda import build

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtorch_cuda.so").touch()
    monkeypatch.setattr(build, "torch_folder", lambda: tmp_path)
    with pytest.raises(build.CannotBuildError, match="has cuda itself"):
        build.library()
