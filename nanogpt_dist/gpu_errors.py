"""What CUDA and NCCL say as they fail: a broken GPU, a setup that NCCL refuses; out of memory.

Told apart by their text, so that nothing of torch is loaded. Sources: PyTorch,
c10/cuda/CUDAException.cpp, torch/csrc/cuda/Exceptions.cpp and distributed/c10d/NCCLUtils.cpp
(ncclGetErrorWithVersion, getNcclErrorDetailStr); NCCL, src/include/nccl.h.in (ncclResult_t).
"""

import errno
import re

from nanogpt_dist.memory_limits import rlimit_room_bytes

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "MPS backend out of memory",
    "std::bad_alloc",  # as torch passes it on
)
# Python's word where there is no thread to be had, which is also so with too many of them
NO_THREAD = "can't start new thread"
# results of NCCL's that are this rank's own; the others (ncclRemoteError, ncclSystemError) mostly
# tell of a rank that is gone
NCCL_OWN = (
    "ncclUnhandledCudaError",
    "ncclInternalError",
    "ncclInvalidArgument",
    "ncclInvalidUsage",
)
NCCL_LOST = (
    "ncclRemoteError",
    "ncclSystemError",
    "NCCL error",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)
LAST = re.compile(r"Last error:\s*(\S.*)")  # NCCL's own words, in torch's
# a kernel that was given nonsense is a bug of ours, not the GPU's fault
CUDA = re.compile(r"CUDA error: (?!device-side assert|invalid).+")
LIBRARY = re.compile(r"\bCU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of a GPU does not suffice."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in text for sign in OUT_OF_MEMORY)
        or ("ncclUnhandledCudaError" in text and "out of memory" in text)
        or (NO_THREAD in text and rlimit_room_bytes() is not None)
    )


def is_lost_rank(text: str) -> bool:
    """Whether NCCL says that another rank is gone, or does not answer."""
    return explain_gpu(text) is None and any(sign in text for sign in NCCL_LOST)


def nccl_said(text: str) -> str:
    """The reason in NCCL's own words; "" where there is none."""
    last = LAST.search(text)
    return last[1].strip() if last else ""


def explain_gpu(text: str) -> str | None:
    """The line for a failure of this rank's GPU or of its NCCL; None for any other error."""
    if "/dev/shm" in text and "ncclSystemError" in text:
        return (
            "NCCL found no room in /dev/shm; start the container with --ipc=host or --shm-size=1g, "
            "or set NCCL_SHM_DISABLE=1"
        )
    if "Duplicate GPU detected" in text:
        return (
            "two ranks are on one GPU; start as many ranks as CUDA_VISIBLE_DEVICES lists GPUs, "
            "or leave it unset"
        )
    if any(sign in text for sign in NCCL_OWN):
        own = next(sign for sign in NCCL_OWN if sign in text)
        return f"NCCL failed: {own}: {nccl_said(text) or text}; set NCCL_DEBUG=WARN to see more"
    failed = CUDA.search(text) or LIBRARY.search(text)
    if failed is None:
        return None
    if "no kernel image" in failed[0]:
        return "this torch was not built for this GPU; install one that was, see pytorch.org"
    return (
        f"the GPU failed: {failed[0]} (nvidia-smi tells of it, and dmesg by Xid); the same command "
        "resumes"
    )
