"""What a user reads where CUDA or NCCL failed; their texts are as torch 2.9 and NCCL 2.27 write
them.
"""

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from nanogpt_dist import gpu_errors
from nanogpt_dist.distributed.roll_call import RollCall
from nanogpt_dist.errors import MAX_LINE, Exit, explain, is_lost_peer, one_line


def of_nccl(result: str, last: str) -> str:
    """DistBackendError's text."""
    return (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
        "unhandled error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
        f"{result}: Call failed.\nLast error:\n{last}"
    )


def of_cuda(reason: str) -> str:
    """AcceleratorError's text."""
    return (
        f"CUDA error: {reason}\nCUDA kernel errors might be asynchronously reported at some other "
        "API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
        "CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions"
    )


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), Exit.BUG, "lower --batch-size"),
        (RuntimeError(of_cuda("out of memory")), Exit.BUG, "out of memory; lower --batch-size"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            Exit.BUG,
            "lower --batch-size",
        ),
        (
            dist.DistBackendError(
                of_nccl("ncclUnhandledCudaError", "Cuda failure 2 'out of memory'")
            ),
            Exit.BUG,
            "lower --batch-size",
        ),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations …"),
            Exit.BUG,
            "out of memory; lower --batch-size",
        ),
        (RuntimeError("std::bad_alloc"), Exit.BUG, "out of memory; lower --batch-size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Exit.BUG, "out of memory; lower --batch"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.IO_ERROR, "no space left for"),
        (
            dist.DistBackendError(
                of_nccl("ncclUnhandledCudaError", "Cuda failure 719 'unspecified launch failure'")
            ),
            Exit.IO_ERROR,
            "NCCL failed: ncclUnhandledCudaError: Cuda failure 719 'unspecified launch failure'; ",
        ),
        (
            dist.DistBackendError(
                of_nccl(
                    "ncclInvalidUsage",
                    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000",
                )
            ),
            Exit.IO_ERROR,
            "two ranks are on one GPU; ",
        ),
        (
            dist.DistBackendError(
                of_nccl(
                    "ncclSystemError",
                    "Error while creating shared memory segment /dev/shm/nccl-rkAh2S (size "
                    "9637888), error: No space left on device (28)",
                )
            ),
            Exit.IO_ERROR,
            "--shm-size",
        ),
        (
            RuntimeError(of_cuda("uncorrectable ECC error encountered")),
            Exit.IO_ERROR,
            "the GPU failed: CUDA error: uncorrectable ECC error encountered (",
        ),
        (
            RuntimeError(of_cuda("no kernel image is available for execution on the device")),
            Exit.IO_ERROR,
            "not built for this GPU; ",
        ),
        (RuntimeError(of_cuda("device-side assert triggered")), Exit.BUG, "please report"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_a_rank_tells_what_failed_on_it(error: BaseException, code: int, says: str) -> None:
    found, text = explain(error)
    line = one_line(text)
    assert found == code, text
    assert says in line
    assert len(line) <= MAX_LINE
    assert not is_lost_peer(error), "the others are there"


@pytest.mark.parametrize(("room", "expected"), [(10**9, True), (None, False)])
def test_no_thread_is_no_memory_where_an_rlimit_bounds_it(
    room: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise there are too many of them, which a smaller micro-batch does not change."""
    monkeypatch.setattr(gpu_errors, "rlimit_room_bytes", lambda: room)
    _, line = explain(RuntimeError("can't start new thread"))
    assert line.startswith("out of memory; lower --batch-size") == expected


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError(
            of_nccl("ncclRemoteError", "NET/IB : Got completion from peer 10.0.0.2 with error 12")
        ),
        dist.DistBackendError(of_nccl("ncclSystemError", "socketProgress: Connection closed")),
        dist.DistBackendError(
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType="
            "ALLREDUCE) ran for 360012 milliseconds before timing out."
        ),
        RuntimeError("NCCL communicator was aborted on rank 0."),
        dist.DistStoreError("wait timeout after 300000ms, keys: /0//cuda//0"),
        RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:8211"),
    ],
    ids=lambda error: str(error)[-40:],
)
def test_a_rank_that_is_gone_is_known_as_such(error: BaseException) -> None:
    assert is_lost_peer(error)
    code, line = explain(error)
    assert (code, "lost another rank" in line) == (Exit.IO_ERROR, True)


def test_ranks_that_are_all_there_repeat_what_nccl_said() -> None:
    store = dist.HashStore()
    ranks = [RollCall(rank, 2, store) for rank in range(2)]
    error = dist.DistBackendError(of_nccl("ncclSystemError", "connect to 10.0.0.2<43821> failed"))
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda rank: rank.leave(error), ranks)
    assert str(first) == (
        "the ranks lost each other (connect to 10.0.0.2<43821> failed): see whether the network "
        "works; the same command resumes"
    )
    assert [first.quiet, second.quiet] == [False, True]  # type: ignore[attr-defined]
