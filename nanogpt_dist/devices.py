"""What the machine offers: device, number format, peak speed, memory."""

import contextlib
import ctypes
import functools
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist.errors import ConfigError
from nanogpt_dist.memory_limits import memory_limit_bytes
from nanogpt_dist.memory_limits import room_bytes as machine_room_bytes
from nanogpt_dist.waiting import wait_briefly_when_crowded


def pick_device(
    name: str,
    local_rank: int = 0,
    local_size: int = 1,
    group: bool = False,
) -> torch.device:
    """`auto` is cuda, else mps, else cpu; each rank of a machine gets a GPU of its own.

    group: whether there is a process group, also of one; no library of collectives has tensors of
    mps, so that `auto` is cpu then. Raises ConfigError where the device is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available() and not group
            else "cpu"
        )
    if name == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise ConfigError("no CUDA device found; type --device cpu")
        if local_size > count:
            raise ConfigError(
                f"{local_size} ranks on this machine, {count} GPUs found; start fewer or --device "
                "cpu"
            )
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("no mps device found; type --device cpu")
    if name == "mps" and group:
        raise ConfigError(
            "mps has no collectives, so one process without ddp or fsdp: leave torchrun and "
            "--strategy out, or type --device cpu"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of weights' products that `name` stands for on `device`; tf32: float32.

    auto: bfloat16 where the device is faster in it, float16 on older GPUs, else float32. Raises
    ConfigError for a type that the device does not have.
    """
    if name == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else torch.float16
            )
        return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else torch.float32
    if name == "float16" and device.type != "cuda":
        raise ConfigError(
            "float16 needs a CUDA device and its gradient scaler; type --dtype bfloat16 or float32"
        )
    if name == "tf32" and not (device.type == "cuda" and torch.cuda.is_tf32_supported()):
        raise ConfigError(
            "tf32 needs a GPU that has it: NVIDIA's from Ampere on, or AMD's MI300; type "
            "--dtype float32"
        )
    # autocast would warn, and compute in float32
    if name == "bfloat16" and device.type == "mps" and not _mps_has_bf16():
        raise ConfigError("bfloat16 on mps needs macOS 14 or newer; type --dtype float32")
    return {
        "float32": torch.float32,
        "tf32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[name]


def check_recomputing(device: torch.device, dropout: float) -> None:
    """Raises ConfigError where a pass that is computed again drops other elements than before.

    torch's activation checkpointing does not keep the state of mps's generator.
    """
    if device.type == "mps" and dropout > 0:
        raise ConfigError(
            "--activation-checkpointing on mps would draw another dropout the second time: type "
            "--activation-checkpointing none or --dropout 0"
        )


def device_name(device: torch.device) -> str:
    """What torch calls a GPU; of another device its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_name(dtype: torch.dtype, setting: str) -> str:
    """What to call a run's type: float32, tf32, bfloat16 or float16; setting: what was asked for.

    tf32 is float32 by its type.
    """
    return "tf32" if setting == "tf32" else str(dtype).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _mps_has_bf16() -> bool:
    return torch.backends.mps.is_macos_or_newer(14, 0)


def set_up(device: torch.device, dtype: str, deterministic: bool) -> None:
    """Set what holds for the process: precision of float32 products, deterministic sums on demand.

    dtype: the setting's value.
    """
    if device.type == "cpu":
        set_up_cpu()
    set_matmul_precision(device, dtype)
    if device.type == "cuda" and deterministic:
        # cuBLAS reads it at its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # asking takes nothing, setting imports dynamo
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    if device.type != "cpu" and deterministic:
        _choose_no_kernel_by_timing()


def set_matmul_precision(device: torch.device, dtype: str) -> None:
    """Let float32 products on a GPU be exact for float32, TF32 for all else.

    Beside bfloat16 or float16 no product is in float32; were there one, TF32 would be more exact
    than they are. torch's newer fp32_precision is not set: where it alone is "tf32", torch.compile
    raises, which asks by the older name (torch 2.9 to 2.13).
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("highest" if dtype == "float32" else "high")
    if dtype == "float32":  # torch.compile would tell to set it
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")


# What lets torch.compile choose by timing between kernels that round otherwise, with the
# environment's name for it, which is read when the compiler is imported.
BY_TIMING = {
    "shape_padding": "TORCHINDUCTOR_SHAPE_PADDING",
    "max_autotune": "TORCHINDUCTOR_MAX_AUTOTUNE",
    "max_autotune_gemm": "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM",
    "max_autotune_pointwise": "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE",
    "coordinate_descent_tuning": "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING",
}


def _choose_no_kernel_by_timing() -> None:
    """Set Inductor's deterministic mode: what is compiled again after a restart is the same.

    Newer versions of torch do it with use_deterministic_algorithms(). The others have no such mode;
    what it does is done here, for good, without importing the compiler.
    """
    config: Any = sys.modules.get("torch._inductor.config")
    if config is None:
        os.environ.update(dict.fromkeys(BY_TIMING.values(), "0"))
    elif hasattr(config, "deterministic"):
        config.deterministic = True
    else:
        for name in BY_TIMING:
            setattr(config, name, False)


def set_up_cpu() -> None:
    """Set what holds for a process that computes on the CPU: memory, and how threads wait."""
    keep_memory()
    wait_briefly_when_crowded(torch.get_num_threads())


@functools.cache
def keep_memory() -> None:
    """Let malloc keep what is freed (glibc).

    Otherwise each large tensor comes as fresh pages, which the kernel zeroes first: a third of a
    step's time at 12 × 768 on two cores.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, most = -1, -3, 2**31 - 1
        libc.mallopt(M_TRIM_THRESHOLD, most)
        libc.mallopt(M_MMAP_THRESHOLD, most)


def use_expandable_segments() -> None:
    """Have torch's allocator grow its segments of GPU memory, where the environment is silent.

    Less memory is left over between them. By a call, as torch 2.9 has read the environment by now.
    """
    variables = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if sys.platform != "linux" or any(name in os.environ for name in variables):
        return
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # from torch 2.10 on
    (change or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; nothing changes for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def seconds_of(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that `device` takes for `work`: on a GPU without the host's part, by its own clock.

    The device was idle before.
    """
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            begin.record()
            work()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def total_memory_bytes(device: torch.device) -> int:
    """Memory that a process may have of the device, in bytes.

    On a CPU the machine's, or what a container or a job may use of it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":  # a part of the machine's, which CPU and GPU share
        return torch.mps.recommended_max_memory()
    return min(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit_bytes() or 2**63
    )


def room_bytes(device: torch.device, ranks_here: int) -> int | None:
    """Memory of the device that this process may still take; None where the system does not say.

    ranks_here: processes like this one that share the machine's. On a CPU without what would have
    to be swapped out first.
    """
    return free_memory_bytes(device) if device.type != "cpu" else machine_room_bytes(ranks_here)


def free_memory_bytes(device: torch.device) -> int | None:
    """Free memory of the device, in bytes; None where the system does not say.

    On a CPU with what can be swapped out.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * sum(
            int(line.split()[1])
            for line in lines
            if line.startswith(("MemAvailable:", "SwapFree:"))
        )
        # of a container's own use most may be files, which give way
        return min(free, memory_limit_bytes() or free)
    return None


def give_back_cached_memory() -> None:
    """Give back what torch's allocators keep of the GPU's memory for reuse, and nobody uses."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def reserved_bytes(device: torch.device) -> int | None:
    """Most memory of the GPU that torch's allocator held so far; None where it has none."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def memory_bytes(device: torch.device) -> int:
    """Most memory that this process held so far: on the GPU, or of the process itself on a CPU.

    On mps what it holds now, with what is kept for reuse: torch does not count the most there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
