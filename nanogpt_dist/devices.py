"""What the machine offers: device, number format, peak speed, memory."""

import contextlib
import ctypes
import functools
import os
import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from nanogpt_dist.errors import ConfigError

# Dense bf16 matmul peaks in TFLOP/s (fp16 where a GPU has no bf16), from NVIDIA's data sheets. The
# first key that is found in the device's name counts, so a longer name stands before one that it
# contains. None: not known, is measured.
PEAK_TFLOPS: dict[str, float | None] = {
    "Laptop": None,  # the same names, other clocks
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100-": 312.0,
    "A100 ": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L20": 119.0,
    "L4": 121.0,
    "A10G": 70.0,
    "NVIDIA A10": 125.0,
    "RTX A6000": 155.0,
    "RTX 6000 Ada": 364.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4G": 65.0,
    "Tesla T4": 65.0,
}


def pick_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """`auto` is cuda, else mps, else cpu; each rank of a machine gets a GPU of its own.

    Raises ConfigError where the device is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
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
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device is faster in it, float16 on older GPUs, else float32."""
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
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def set_up(device: torch.device, deterministic: bool) -> None:
    """Set what holds for the process: TF32 beside autocast, deterministic sums on demand."""
    if device.type == "cpu":
        keep_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        if deterministic:
            # cuBLAS reads it at its first use
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # asking takes nothing, setting imports dynamo
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)


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


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; nothing changes for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@functools.cache
def peak_tflops(device: torch.device, dtype: torch.dtype, measure_s: float = 0.3) -> float:
    """Peak of one device in TFLOP/s.

    From the table for a known GPU, else of a matmul of 1024² in `measure_s`, once.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
        if peak is not None:
            # TF32 runs at half the rate of bf16
            return peak if dtype != torch.float32 else peak / 2
    n = 1024
    a, b = (
        torch.randn(n, n, device=device, dtype=dtype, generator=_generator(device))
        for _ in range(2)
    )
    a @ b
    best, deadline = float("inf"), time.perf_counter() + measure_s
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e12


def _generator(device: torch.device) -> torch.Generator:
    # of its own: measuring must not move the training's randomness
    return torch.Generator(device).manual_seed(0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device; on a CPU the machine's, or what a container or a job may use of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit_bytes() or 2**63
    )


def memory_limit_bytes(
    root: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """The smallest cgroup memory limit of this process; None: no limit.

    Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst (memory.max) and
    cgroup-v1/memory.rst.
    """
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, name = (
            (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        )
        place = base / path.lstrip("/")
        for folder in [place, *place.parents]:
            if folder == root.parent:
                break
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return min(limits, default=None)


def free_memory_bytes(device: torch.device) -> int | None:
    """Free memory of the device, in bytes; None where the system does not say.

    On a CPU with what can be swapped out.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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


def memory_bytes(device: torch.device) -> int:
    """Most memory that this process held so far: on the GPU, or of the process itself on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
