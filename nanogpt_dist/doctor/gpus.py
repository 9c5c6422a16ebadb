"""torch's build, its devices with driver and memory, and how fast they multiply."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.variables import gpu_files
from nanogpt_dist.errors import Exit, one_line

if TYPE_CHECKING:
    import torch

GB = 10**9
FREE_SHARE = 0.9  # of a GPU's memory, where nobody else uses it
OWN_BYTES = GB  # that CUDA takes for this process, and a display
PEAK_SHARE = 0.5  # of the data sheet, which a large product comes to at least
LITTLE_BYTES = 2 * GB
MEASURE_S = 0.2
WHO_USES = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
NVIDIA = "0x10de"  # of a PCI device's file `vendor`


def check_torch(machine: Machine) -> Iterator[Check]:
    """Whether it can be imported, and is built for the GPUs that are here."""
    try:
        import torch
        import torch.distributed as dist
    except (
        Exception
    ) as error:  # ImportError, OSError of a library of CUDA's, what a build may raise
        text = one_line(f"torch cannot be imported: {type(error).__name__}: {error}", 150)
        yield Check("torch", "error", text, "pip install --force-reinstall torch", Exit.BUG)
        return
    hip, cuda = getattr(torch.version, "hip", None), torch.version.cuda
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    files = gpu_files(machine)
    if files and build == "CPU" and not torch.cuda.is_available():
        text = f"torch {torch.__version__} is built for the CPU, and this machine has {files} GPUs"
        yield Check(
            "torch", "error", text, "pip install --force-reinstall torch  # see pytorch.org"
        )
    elif files and not torch.cuda.is_available() and not _hidden(machine):
        text = f"torch {torch.__version__} for {build} finds none of {files} GPUs: {_reason()}"
        yield Check("torch", "error", text, "nvidia-smi" if cuda else "rocm-smi")
    else:
        yield Check("torch", "ok", f"{torch.__version__}, built for {build}")
    if not files and not torch.cuda.is_available() and _on_the_bus(machine):
        text = "an NVIDIA GPU is on the PCI bus, and no driver has it"
        yield Check(
            "driver", "warning", text, "nvidia-smi  # in a container: docker run --gpus all"
        )
    yield _check_collectives(dist)


def _hidden(machine: Machine) -> bool:
    """Whether a variable hides all GPUs, which is a finding of its own."""
    return machine.environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1")


def _reason() -> str:
    """Why CUDA does not begin, in its own words."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError, what a driver's library may raise
        return one_line(str(error), 90)
    return "no reason is given"


def _on_the_bus(machine: Machine) -> bool:
    return any(
        vendor.read_text().strip() == NVIDIA
        and (vendor.parent / "class").read_text().startswith("0x03")
        for vendor in machine.root.glob("sys/bus/pci/devices/*/vendor")
    )


def _check_collectives(dist: object) -> Check:
    import torch

    if not torch.distributed.is_available():
        text = "torch is built without torch.distributed: one process only"
        return Check("collectives", "warning", text, "pip install --force-reinstall torch")
    there = ["gloo"] if torch.distributed.is_gloo_available() else []
    if torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else ""
        there.append(f"NCCL {version}".strip())
    if not there or (torch.cuda.is_available() and len(there) < 2):
        text = f"{' and '.join(there) or 'none'}: GPUs need NCCL, CPUs gloo"
        return Check("collectives", "error", text, "pip install --force-reinstall torch")
    return Check("collectives", "ok", " and ".join(there))


def check_memory(machine: Machine) -> Iterator[Check]:
    """The machine's memory: what there is, what a job or a container may have, what is free."""
    import torch

    from nanogpt_dist.devices import free_memory_bytes, memory_limit_bytes, total_memory_bytes

    cpu = torch.device("cpu")
    limit = memory_limit_bytes(machine.root / "sys/fs/cgroup", machine.root / "proc/self/cgroup")
    total, free = total_memory_bytes(cpu), free_memory_bytes(cpu)
    may = min(total, limit or total)
    free = may if free is None else min(free, may)
    text = f"{may / GB:,.1f} GB, {free / GB:,.1f} GB of them free"
    text += f"; a cgroup limits it, the machine has {total / GB:,.1f} GB" if may < total else ""
    if free < LITTLE_BYTES:
        yield Check("memory", "warning", text, "ps aux --sort=-rss | head -5")
    else:
        yield Check("memory", "ok", text)


def check_devices(machine: Machine) -> Iterator[Check]:
    """Each device of this process: under torchrun its own, else all GPUs, or the CPU."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        local = machine.number("LOCAL_RANK") if machine.local_ranks > 1 else None
        if local is not None and local >= count:
            text = f"rank {local} of this machine has no GPU: there are {count}"
            yield Check("device", "error", text, f"torchrun --nproc-per-node {count}")
            return
        for index in range(count) if local is None else [local]:
            yield from _check_gpu(machine, torch.device("cuda", index))
        return
    kind = "mps" if torch.backends.mps.is_available() and machine.local_ranks == 1 else "cpu"
    device = torch.device(kind)
    name = re.search(r"(?m)^model name\s*: (.*)$", machine.read("proc/cpuinfo"))
    text = f"{kind}: {name[1].strip() if name else kind}"
    yield Check("device", "ok", f"{text}; {_shown(_speeds(device))}")


def _check_gpu(machine: Machine, device: "torch.device") -> Iterator[Check]:
    import torch

    from nanogpt_dist.peaks import known_peak

    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    text = f"{device}: {properties.name}, {total / GB:,.1f} GB"
    driver = re.search(r"Module.*?(\d+\.\d+[.\d]*)", machine.read("proc/driver/nvidia/version"))
    text += f", driver {driver[1]}" if driver else ""
    if free < FREE_SHARE * total - OWN_BYTES:
        used = f"{device}: {(total - free) / GB:,.1f} of {total / GB:,.1f} GB are in use by others"
        yield Check("GPU memory", "warning", used, WHO_USES)
        yield Check("device", "ok", f"{text}; not measured beside others")
        return
    try:
        speeds = _speeds(device)
    except torch.OutOfMemoryError:
        text += f"; {free / GB:,.1f} GB were free, and its memory ran out while it was measured"
        yield Check("device", "warning", text, WHO_USES)
        return
    sheet = known_peak(properties.name)
    text += f"; {_shown(speeds)}"
    text += f", data sheet {sheet:,.0f}" if sheet else ""
    half = speeds.get("bf16", speeds.get("fp16", 0.0))
    if sheet and half < PEAK_SHARE * sheet:
        text += f": {half / sheet:.0%} of it"
        yield Check("device", "warning", text, "nvidia-smi -q -d PERFORMANCE,CLOCK,TEMPERATURE")
    else:
        yield Check("device", "ok", text)


def _speeds(device: "torch.device") -> dict[str, float]:
    """TFLOP/s of a large product in each format that the device trains in."""
    import torch

    from nanogpt_dist.devices import pick_dtype
    from nanogpt_dist.peaks import measured_tflops

    half = pick_dtype("auto", device)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if half == torch.float16:
        dtypes = {"fp32": torch.float32, "fp16": half}
    elif device.type == "mps":
        dtypes = {"fp32": torch.float32}
    return {name: measured_tflops(device, dtype, MEASURE_S) for name, dtype in dtypes.items()}


def _shown(speeds: dict[str, float]) -> str:
    return ", ".join(f"{speed:,.3g} TFLOP/s in {name}" for name, speed in speeds.items())
