"""GPUs by the names that people type: memory, peak, links and power of each. Nothing is measured.

Memory is torch's total_memory, which is less than what the name says: the driver keeps some, and
error correction takes a sixteenth where the memory has none of its own. It varies by some MiB with
the driver; here stands the least of what torch's own messages of several drivers say. Links are one
direction's GB/s of a GPU: data sheets add both up. Power is the board's limit, which a training
comes close to.
"""

import difflib
import re
from dataclasses import dataclass, replace

import torch

from nanogpt_dist import peaks
from nanogpt_dist.devices import pick_device, pick_dtype, total_memory_bytes
from nanogpt_dist.errors import UsageError

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One GPU, or a machine's CPU. peak_tflops: dense products in bfloat16, or float16 without it.

    link_gb_per_second: one direction, of a GPU to those of its node. power_watts: None: unknown.
    kind: torch's, cpu, cuda or mps. source: of links and power; the peak's stands in peaks.py.
    has_bfloat16: and tf32. has_fp8: products in float8, as --fp8 has them.
    """

    name: str
    torch_name: str
    memory_bytes: int
    peak_tflops: float
    link: str
    link_gb_per_second: float
    power_watts: int | None
    source: str
    kind: str = "cuda"
    has_bfloat16: bool = True
    has_fp8: bool = True


@dataclass(frozen=True)
class _Row:
    torch_name: str
    memory_gib: float
    link: str
    link_gb_per_second: float
    power_watts: int
    source: str
    has_bfloat16: bool = True


NVLINK3, NVLINK4, NVLINK5 = ("NVLink 3", 300.0), ("NVLink 4", 450.0), ("NVLink 5", 900.0)
PCIE3, PCIE4, PCIE5 = ("PCIe 3", 16.0), ("PCIe 4", 32.0), ("PCIe 5", 64.0)
ROWS = {
    "b200": _Row("NVIDIA B200", 178.35, *NVLINK5, 1000, "NVIDIA HGX B200 data sheet"),
    "h200": _Row("NVIDIA H200", 139.72, *NVLINK4, 700, "NVIDIA H200 data sheet"),
    "h100-80gb": _Row("NVIDIA H100 80GB HBM3", 79.18, *NVLINK4, 700, "NVIDIA H100 data sheet"),
    "h100-pcie": _Row("NVIDIA H100 PCIe", 79.18, *PCIE5, 350, "NVIDIA H100 PCIe product brief"),
    "a100-80gb": _Row("NVIDIA A100-SXM4-80GB", 79.15, *NVLINK3, 400, "NVIDIA A100 data sheet"),
    "a100-40gb": _Row("NVIDIA A100-SXM4-40GB", 39.38, *NVLINK3, 400, "NVIDIA A100 data sheet"),
    "a100-pcie-80gb": _Row("NVIDIA A100 80GB PCIe", 79.15, *PCIE4, 300, "NVIDIA A100 data sheet"),
    "a40": _Row("NVIDIA A40", 44.34, *PCIE4, 300, "NVIDIA A40 data sheet"),
    "a10g": _Row("NVIDIA A10G", 22.03, *PCIE4, 300, "NVIDIA A10G as nvidia-smi has it"),
    "l4": _Row("NVIDIA L4", 22.03, *PCIE4, 72, "NVIDIA L4 data sheet"),
    "l40s": _Row("NVIDIA L40S", 44.39, *PCIE4, 350, "NVIDIA L40S data sheet"),
    "rtx-6000-ada": _Row(
        "NVIDIA RTX 6000 Ada Generation", 47.37, *PCIE4, 300, "NVIDIA RTX 6000 Ada data sheet"
    ),
    "rtx-a6000": _Row("NVIDIA RTX A6000", 47.4, *PCIE4, 300, "NVIDIA RTX A6000 data sheet"),
    "rtx-5090": _Row(
        "NVIDIA GeForce RTX 5090", 31.36, *PCIE5, 575, "NVIDIA GeForce RTX 5090 specifications"
    ),
    "rtx-4090": _Row(
        "NVIDIA GeForce RTX 4090", 23.52, *PCIE4, 450, "NVIDIA GeForce RTX 4090 specifications"
    ),
    "rtx-3090": _Row(
        "NVIDIA GeForce RTX 3090", 23.56, *PCIE4, 350, "NVIDIA GeForce RTX 3090 specifications"
    ),
    "v100-32gb": _Row(
        "Tesla V100-SXM2-32GB", 31.73, "NVLink 2", 150.0, 300, "NVIDIA V100 data sheet", False
    ),
    "v100-16gb": _Row(
        "Tesla V100-SXM2-16GB", 15.77, "NVLink 2", 150.0, 300, "NVIDIA V100 data sheet", False
    ),
    "t4": _Row("Tesla T4", 14.56, *PCIE3, 70, "NVIDIA T4 data sheet", False),
    "mi300x": _Row(
        "AMD Instinct MI300X",
        191.69,
        "Infinity Fabric",
        448.0,
        750,
        "AMD Instinct MI300X data sheet",
    ),
}
# NVIDIA's compute capability is below 8.9, or it is no NVIDIA
WITHOUT_FP8 = {"a100-80gb", "a100-40gb", "a100-pcie-80gb", "a40", "a10g", "rtx-a6000", "rtx-3090"}
WITHOUT_FP8 |= {"v100-32gb", "v100-16gb", "t4", "mi300x"}
# what people type, too: the first of its makers' sizes that clouds have
SHORT = {"h100": "h100-80gb", "a100": "a100-80gb", "v100": "v100-16gb", "4090": "rtx-4090"}
SHORT |= {"3090": "rtx-3090", "5090": "rtx-5090", "h100-sxm": "h100-80gb", "a6000": "rtx-a6000"}
HERE = ("auto", "cpu", "cuda", "mps")  # of this machine
MEASURE_S = 0.1  # a product of a CPU's, over and over
HOST_LINK = ("shared memory", 10.0)  # between ranks on one CPU: an order of magnitude


def accelerator(
    name: str,
    memory_bytes: int | None = None,
    peak_tflops: float | None = None,
) -> Accelerator:
    """The Accelerator of that name; auto, cpu, cuda and mps are this machine's, a CPU measured.

    memory_bytes, peak_tflops: in place of its own; with both, any name will do. Raises UsageError
    for an unknown name, with the nearest one.
    """
    asked = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    asked = SHORT.get(asked, asked)
    if asked in HERE:
        found = _here(asked, peak_tflops)
    elif asked in ROWS:
        found = _of_catalogue(asked)
    elif memory_bytes is not None and peak_tflops is not None:
        found = Accelerator(asked, name, memory_bytes, peak_tflops, *PCIE4, None, "assumed")
    else:
        near = difflib.get_close_matches(asked, [*ROWS, *SHORT, *HERE], n=1, cutoff=0.3)
        raise UsageError(
            f"--device {name[:40]} is unknown; "
            + (f"did you mean {near[0]}? " if near else "")
            + "`nanogpt plan --devices` lists them; another: add --memory 80GB --peak 500"
        )
    return replace(
        found,
        memory_bytes=memory_bytes or found.memory_bytes,
        peak_tflops=peak_tflops or found.peak_tflops,
    )


def _of_catalogue(name: str) -> Accelerator:
    row = ROWS[name]
    peak = peaks.known_peak(row.torch_name)
    assert peak is not None, row.torch_name
    return Accelerator(
        name=name,
        torch_name=row.torch_name,
        memory_bytes=int(row.memory_gib * GIB),
        peak_tflops=peak,
        link=row.link,
        link_gb_per_second=row.link_gb_per_second,
        power_watts=row.power_watts,
        source=row.source,
        has_bfloat16=row.has_bfloat16,
        has_fp8=name not in WITHOUT_FP8,
    )


def _here(asked: str, peak: float | None) -> Accelerator:
    """This machine's device, with its own memory; peak: None: a CPU's is measured."""
    device = pick_device(asked)
    memory = total_memory_bytes(device)
    capability = (0, 0)
    if device.type == "cuda":
        torch_name = torch.cuda.get_device_name(device)
        if known := name_of(torch_name):
            return replace(_of_catalogue(known), memory_bytes=memory)
        link, source = PCIE4, "assumed"
        capability = torch.cuda.get_device_capability(device)
    else:
        torch_name, link, source = device.type, HOST_LINK, "assumed"
    if peak is None:
        peak = peaks.peak_tflops(device, pick_dtype("auto", device), MEASURE_S)
    return Accelerator(
        name=device.type,
        torch_name=torch_name,
        memory_bytes=memory,
        peak_tflops=peak,
        link=link[0],
        link_gb_per_second=link[1],
        power_watts=None,
        source=source,
        kind=device.type,
        has_bfloat16=device.type != "cuda" or capability >= (8, 0),
        has_fp8=capability >= (8, 9) and not torch.version.hip,
    )


def name_of(torch_name: str) -> str | None:
    """The catalogue's name of what torch calls so; None: it has none."""
    plain = re.sub(r"\W+", "", torch_name).lower()
    return next(
        (name for name, row in ROWS.items() if re.sub(r"\W+", "", row.torch_name).lower() == plain),
        None,
    )
