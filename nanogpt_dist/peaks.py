"""The peak of a device: a known GPU's by its name, else that of a matmul, measured.

By name: dense bfloat16 products, summed in float32. A data sheet gives the peak with sparsity, or
with sums in float16, in larger letters; neither is what training does. GeForce sums in float32 at
half the rate, workstation cards of the same chip do not.
"""

import functools
import re
import time

import torch

from nanogpt_dist.devices import seconds_of, synchronize

# Whole names as torch gives them, without the maker's, as patterns. TFLOP/s; float16 where a GPU
# has no bfloat16. What is not here is measured: laptops, slices of a GPU (MIG) and virtual GPUs
# have other clocks or fewer units by nearly the same names.
PEAK_TFLOPS: dict[str, float] = {
    # NVIDIA GB300 NVL72 and GB200 NVL72 data sheets: 360 PFLOP/s sparse in 72 GPUs
    r"GB300": 2500.0,
    r"GB200": 2500.0,
    # NVIDIA HGX B300 and HGX B200 data sheets: 36 PFLOP/s sparse in 8 GPUs
    r"B300( SXM6 AC)?": 2250.0,
    r"B200": 2250.0,
    # NVIDIA GH200, H200 and H100 data sheets; H800 has H100's units and fewer links
    r"GH200( \d+GB)?( HBM3e?)?": 989.0,
    r"H200": 989.0,
    r"H200 NVL": 835.0,
    r"H[18]00( SXM5)?( \d+GB HBM3)?": 989.0,
    r"H[18]00 PCIe": 756.0,
    r"H100 NVL": 835.0,
    # NVIDIA H20 data sheet
    r"H20(-3e)?": 148.0,
    # NVIDIA A100 data sheet; A800 has its units and fewer links
    r"A[18]00(-SXM4-\d+GB|-PCIE-\d+GB| \d+GB PCIe)": 312.0,
    # NVIDIA A40, A30, A10 and A10G data sheets
    r"A40": 149.7,
    r"A30": 165.0,
    r"A10": 125.0,
    r"A10G": 70.0,
    # NVIDIA L40S, L40, L20 and L4 data sheets
    r"L40S": 362.0,
    r"L40": 181.0,
    r"L20": 119.5,
    r"L4": 121.0,
    # NVIDIA RTX Blackwell PRO, Ada and Ampere GPU architecture whitepapers, appendix A
    r"RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    r"RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    r"RTX 6000 Ada Generation": 364.2,
    r"RTX A6000": 154.8,
    # NVIDIA RTX Blackwell, Ada and Ampere GA102 GPU architecture whitepapers, appendix A
    r"GeForce RTX 5090": 209.5,
    r"GeForce RTX 5080": 112.6,
    r"GeForce RTX 4090": 165.2,
    r"GeForce RTX 3090": 71.0,
    # NVIDIA V100 and T4 data sheets, float16
    r"V100-SXM[23]-\d+GB": 125.0,
    r"V100-PCIE-\d+GB": 112.0,
    r"V100S-PCIE-32GB": 130.0,
    r"T4G?": 65.0,
    # AMD Instinct MI300X, MI325X and MI300A data sheets
    r"MI3(00|25)X( OAM)?": 1307.4,
    r"MI300A": 980.6,
}


def known_peak(name: str) -> float | None:
    """Dense bfloat16 peak of the GPU that torch calls `name`, in TFLOP/s; None: not known."""
    model = re.sub(r"^(NVIDIA |AMD Instinct )?(Tesla )?", "", name)
    return next(
        (peak for pattern, peak in PEAK_TFLOPS.items() if re.fullmatch(pattern, model)), None
    )


def peak_tflops(device: torch.device, dtype: torch.dtype, measure_s: float = 0.3) -> float:
    """Peak of one device in TFLOP/s, for float32 with the products' precision as it is set.

    From the table for a known GPU, of which TF32 is half; else, and for exact float32, that of a
    large matmul, measured for `measure_s` once in a process.
    """
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    if device.type == "cuda" and not exact:
        peak = known_peak(torch.cuda.get_device_name(device))
        if peak is not None:
            return peak if dtype != torch.float32 else peak / 2
    return _measured_peak(device, dtype, exact, measure_s)


def measured_tflops(device: torch.device, dtype: torch.dtype, measure_s: float = 0.3) -> float:
    """TFLOP/s of a large matmul, measured for `measure_s` once in a process.

    The table is not asked. Of float32 with the products' precision as it is set.
    """
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return _measured_peak(device, dtype, exact, measure_s)


WIDTH, WIDEST = 1024, {"cuda": 8192, "mps": 4096}  # of the matrices; wide enough: all units work
LONG_S = 0.005  # a product that takes so long need not be of wider ones


@functools.cache
def _measured_peak(
    device: torch.device,
    dtype: torch.dtype,
    exact: bool,  # one figure for each precision
    measure_s: float,
) -> float:
    n, widest = WIDTH, WIDEST.get(device.type, WIDTH)
    while n < widest and _matmul_seconds(n, device, dtype) < LONG_S:
        try:
            _matmul_seconds(2 * n, device, dtype)
        except torch.OutOfMemoryError:  # beside a model that fills the device
            break
        n *= 2
    return 2 * n**3 / _matmul_seconds(n, device, dtype, measure_s) / 1e12


def _matmul_seconds(
    n: int,
    device: torch.device,
    dtype: torch.dtype,
    measure_s: float = 0.0,
) -> float:
    """Seconds of the fastest product of two n × n matrices, of as many as `measure_s` has."""
    a, b = (
        torch.randn(n, n, device=device, dtype=dtype, generator=_generator(device))
        for _ in range(2)
    )
    a @ b
    synchronize(device)
    deadline = time.perf_counter() + measure_s
    best = seconds_of(device, lambda: a @ b)
    while time.perf_counter() < deadline:
        best = min(best, seconds_of(device, lambda: a @ b))
    return best


def _generator(device: torch.device) -> torch.Generator:
    # of its own: measuring must not move the training's randomness
    return torch.Generator(device).manual_seed(0)
