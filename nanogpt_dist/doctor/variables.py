"""Environment variables: left over from a job, or set for debugging and forgotten."""

import locale
import re
import sys
from collections.abc import Iterator

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine, is_rank

OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Variable → values that do no harm, what it does: for finding a bug, and slow in a run.
SLOW: dict[str, tuple[str, str]] = {
    "CUDA_LAUNCH_BLOCKING": ("0", "makes the host wait for each kernel"),
    "TORCH_DISTRIBUTED_DEBUG": ("OFF", "checks each collective by another one"),
    "TORCH_CPP_LOG_LEVEL": ("ERROR|WARNING|FATAL", "logs each step of torch's C++"),
    "NCCL_DEBUG": ("VERSION|WARN|NONE|INFO", "logs each call of NCCL's"),
    "NCCL_P2P_DISABLE": ("0", "sends what GPUs of a machine exchange through its memory"),
    "NCCL_IB_DISABLE": ("0", "sends what machines exchange past InfiniBand"),
    "NCCL_SHM_DISABLE": ("0", "sends what GPUs of a machine exchange through the network"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("0", "asks the driver for each tensor's memory"),
    "TORCHDYNAMO_DISABLE": ("0", "turns torch.compile off"),
    "TORCH_COMPILE_DISABLE": ("0", "turns torch.compile off"),
    "TORCH_SHOW_DISPATCH_TRACE": ("0", "prints each operation"),
    "TORCH_LOGS": ("", "logs what the compiler does"),
    "MALLOC_CHECK_": ("0", "has malloc check its lists at each call"),
    "PYTHONMALLOC": ("malloc|pymalloc|default", "has Python check each of its allocations"),
    "PYTHONTRACEMALLOC": ("0", "has Python remember where each object was made"),
    "PYTHONPROFILEIMPORTTIME": ("0", "prints each import"),
}
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Source: PyTorch, docs/source/notes/cuda.md, "Optimizing memory usage with PYTORCH_CUDA_ALLOC_CONF"
OPTIONS = {
    *("backend", "max_split_size_mb", "max_non_split_rounding_mb", "roundup_power2_divisions"),
    *("garbage_collection_threshold", "expandable_segments", "release_lock_on_cudamalloc"),
    *(
        "pinned_use_cuda_host_register",
        "pinned_num_register_threads",
        "graph_capture_record_stream_reuse",
    ),
    *(
        "pinned_use_background_threads",
        "pinned_reserve_segment_size_mb",
        "per_process_memory_fraction",
    ),
    *("pinned_use_hip_host_register", "release_lock_on_hipmalloc", "use_async_allocator"),
    *("throw_on_cudamalloc_oom",),
}


def check_variables(machine: Machine) -> Iterator[Check]:
    """Of ranks, for debugging, of the allocator, for which GPUs are seen, for text."""
    yield _of_ranks(machine)
    yield from _for_debugging(machine)
    yield from _of_allocator(machine)
    yield from _of_visible_gpus(machine)
    yield _of_text(machine)


def _of_ranks(machine: Machine) -> Check:
    environment = machine.environment
    left = [name for name in OF_A_RANK if name in environment]
    left += [name for name in environment if name.startswith("PET_")]
    if is_rank(environment):
        size, rank = environment["WORLD_SIZE"], environment["RANK"]
        return Check("rank variables", "ok", f"rank {rank} of {size}")
    if not left:
        return Check("rank variables", "ok", "none: this is one process, without torchrun")
    if "KUBERNETES_SERVICE_HOST" in environment and all(name.startswith("PET_") for name in left):
        return Check("rank variables", "ok", f"{', '.join(left)[:100]}: the pod's, for torchrun")
    all_ranks = environment.get("WORLD_SIZE", "1")
    waits = all_ranks != "1"
    return Check(
        "rank variables",
        "error" if waits or "RANK" in left else "warning",
        f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} set, and torchrun is not here: "
        + (
            f"a command would wait for {all_ranks} ranks" if waits else "left over from another job"
        ),
        f"unset {' '.join(left)}",
    )


def _for_debugging(machine: Machine) -> Iterator[Check]:
    well = True
    for name, (harmless, does) in SLOW.items():
        value = machine.environment.get(name, "")
        if value and not re.fullmatch(harmless, value, re.IGNORECASE):
            well = False
            yield Check(
                "debug variables", "warning", f"{name}={value[:40]} {does}", f"unset {name}"
            )
    if well:
        yield Check("debug variables", "ok", "none that slows a run down")


def _of_allocator(machine: Machine) -> Iterator[Check]:
    """torch reads these at the first tensor on a GPU, and fails there."""
    for name in ALLOCATOR:
        value = machine.environment.get(name)
        if value is None:
            continue
        bare = re.sub(r"\[[^]]*\]", "", value)
        parts = [part.partition(":") for part in bare.split(",") if part.strip()]
        wrong = [key.strip() for key, colon, _ in parts if not colon or key.strip() not in OPTIONS]
        if wrong:
            yield Check(
                "allocator",
                "error",
                f"{name}={value[:60]}: torch has no option {wrong[0][:40]!r}",
                f"unset {name}",
            )
        elif "expandable_segments:True" not in value and "expandable_segments" in value:
            text = f"{name}={value[:60]} leaves more memory over between tensors"
            yield Check("allocator", "warning", text, f"unset {name}")
        else:
            yield Check("allocator", "ok", f"{name}={value[:60]}")


def _is_beyond(number: str, there: int) -> bool:
    digits = number.lstrip("0") or "0"
    known = re.fullmatch("[0-9]+", number) is not None
    return known and (len(digits) > 9 or int(digits) >= there)


def _of_visible_gpus(machine: Machine) -> Iterator[Check]:
    there = gpu_files(machine)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        value = machine.environment.get(name)
        if value is None:
            continue
        numbers = [part.strip() for part in value.split(",")]
        hides_all = not value.strip() or numbers[0] == "-1"
        beyond = [part for part in numbers if _is_beyond(part, max(1, there))]
        if hides_all and there:
            text = f"{name}={value!r} hides all {there} GPUs"
            yield Check("visible GPUs", "warning", text, f"unset {name}")
        elif beyond and there:
            text = (
                f"{name}={value[:60]}: there is no GPU {beyond[0][:9]}, and those behind it are "
                "ignored"
            )
            yield Check("visible GPUs", "error", text, f"unset {name}")
        else:
            yield Check("visible GPUs", "ok", f"{name}={value}, {there} on this machine")


def gpu_files(machine: Machine) -> int:
    """GPUs that a driver offers, by the files of theirs: NVIDIA's, else AMD's."""
    devices = machine.root / "dev"
    nvidia = [path for path in devices.glob("nvidia*") if path.name[6:].isdecimal()]
    if nvidia:
        return len(nvidia)
    return len(list(devices.glob("dri/renderD*"))) if (devices / "kfd").exists() else 0


def _of_text(machine: Machine) -> Check:
    """Prompts, paths and documents are UTF-8."""
    found = {
        "file names": sys.getfilesystemencoding(),
        "files": locale.getpreferredencoding(False),
        "standard output": getattr(sys.stdout, "encoding", None) or "utf-8",
    }
    odd = {
        what: encoding
        for what, encoding in found.items()
        if encoding.lower().replace("-", "").replace("_", "") != "utf8"
    }
    if not odd:
        return Check("text encoding", "ok", "UTF-8")
    names = [
        name
        for name in (
            "PYTHONIOENCODING",
            "PYTHONUTF8",
            "PYTHONCOERCECLOCALE",
            "PYTHONLEGACYWINDOWSFSENCODING",
        )
        if name in machine.environment
    ]
    text = ", ".join(f"{what} {encoding}" for what, encoding in odd.items())
    todo = "export LC_ALL=C.UTF-8"
    return Check(
        "text encoding",
        "warning",
        f"{text}: other characters are lost or refused",
        (f"unset {' '.join(names)}; " if names else "") + todo,
    )
