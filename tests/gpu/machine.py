"""Where figures come from: the GPU, its driver, the versions, the commit."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[2]
RESULTS = CLONE / "benchmarks" / "results"
SIMULATED = os.environ.get("FAKECUDA") == "1"  # the device computes on the CPU (tests/fakecuda)


def about() -> dict[str, Any]:
    """The device and the software, as JSON has it. There is a CUDA device."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    return {
        "device": torch.cuda.get_device_name(0),
        "simulated": SIMULATED,
        "devices": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "capability": f"{major}.{minor}",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": _said("git", "rev-parse", "HEAD"),
        "changed_files": len((_said("git", "status", "--porcelain", all_lines=True)).splitlines()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def results_file(kind: str, device: str) -> Path:
    """benchmarks/results/KIND-DEVICE.json."""
    name = "-".join("".join(c if c.isalnum() else " " for c in device).split())
    return RESULTS / f"{kind}-{name}.json"


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _said(*line: str, all_lines: bool = False) -> str:
    """What a command says, its first line only; nothing where it is not there."""
    try:
        done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if all_lines else (done.stdout.splitlines() or [""])[0]
