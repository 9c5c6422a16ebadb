"""Every branch of the program for CUDA is run through, by a command on the fake GPU."""

import json
from pathlib import Path

import pytest

from tests.fakecuda import branches
from tests.fakecuda.runs import BATCH, SIZE, TRAIN
from tests.fork_server import Server

# Compiled code is Dynamo's, not the line that a trace sees.
STEPS = [*TRAIN, "--dataset", "DATA", "--max-iters", 3, "--eval-interval", 2, "--no-compile"]
# ng.train() in a notebook, whose process goes on after an error
FAILING = """
import os, nanogpt_dist as ng, nanogpt_dist.errors
try:
    ng.train("shakespeare-char", dataset="none", device="cuda", out_dir="failing", strategy="ddp")
except ng.errors.NanogptError:
    os._exit(0)
os._exit(1)
"""
# a build without NCCL, then a driver that does not answer
BROKEN = """
import pathlib, torch
from nanogpt_dist.doctor import gpus, machine
files = pathlib.Path("machine/dev")
files.mkdir(parents=True)
(files / "nvidia0").touch()
def levels():
    return [check.level for check in gpus.check_torch(machine.Machine({}, root=files.parent))]
torch.distributed.is_nccl_available = lambda: False
assert levels() == ["ok", "error"], levels()
torch.cuda.is_available, torch.version.cuda = lambda: False, "12.8"
assert levels() == ["error", "ok"], levels()
"""
GIVEN_BACK = """
import torch
from nanogpt_dist.devices import give_back_cached_memory
torch.zeros(1, device="cuda")
torch.cuda.is_initialized, torch.cuda.empty_cache = lambda: True, lambda: None
give_back_cached_memory()
"""
UNKNOWN = """
import torch
from nanogpt_dist.estimate.accelerators import accelerator
torch.cuda.get_device_name = lambda device=None: "NVIDIA A1"
assert accelerator("cuda", peak_tflops=1.0).link == "PCIe 4"
"""
BENCH = {
    "mfu": 0.4,
    "peak_tflops": 989.0,
    "ms_per_update": 100.0,
    "first_step_seconds": 1.0,
    "parameters": 124_373_760,
    "ranks": 1,
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "evaluation_tokens_per_second": 1e6,
}
COMMANDS: dict[str, tuple[int, list[object]]] = {
    "train": (0, [*STEPS, "--out-dir", "run", "--async-save", "--chunked-loss"]),
    "train, compiled": (0, [*STEPS[:-1], "--out-dir", "compiled"]),
    "train float16": (0, [*STEPS, "--out-dir", "float16", "--dtype", "float16"]),
    "train float32, deterministic": (
        0,
        [*STEPS, "--out-dir", "exact", "--dtype", "float32", "--deterministic"],
    ),
    "train, graphs": (
        0,
        [*STEPS[:-1], "--out-dir", "graphs", "--compile-mode", "reduce-overhead"],
    ),
    "ng.train, a rank fails": (2, ["-c", FAILING]),
    "train ddp": (2, [*STEPS, "--out-dir", "ddp", "--strategy", "ddp"]),
    "train by itself": (2, [*STEPS, "--out-dir", "auto", "--device", "cuda"]),
    "train fsdp, offload": (2, [*STEPS, "--out-dir", "fsdp", "--cpu-offload"]),
    "train, intra-document": (0, [*STEPS, "--out-dir", "documents", "--intra-document"]),
    "bench train": (
        0,
        ["bench", "train", *SIZE, *BATCH, "--updates", 3, "--profile", "trace", "--device", "cuda"],
    ),
    "bench sample": (0, ["bench", "sample", *SIZE, "--rounds", 2, "--max-new-tokens", 6]),
    "bench io": (0, ["bench", "io", *SIZE, "--rounds", 2]),
    "sample": (0, ["sample", "run", "--prompt", "a", "--prompt", "b", "--max-new-tokens", 6]),
    "sample one": (0, ["sample", "run", "--num-samples", 1, "--top-p", 0.9]),
    "eval": (0, ["eval", "run", "--device", "cuda"]),
    # with a warning: a CPU is slower than the data sheet of the card that it stands for
    "doctor": (0, ["doctor", "--json"]),
    "doctor, ranks": (2, ["doctor", "--json"]),
    "doctor, of a broken machine": (0, ["-c", BROKEN]),
    "memory is given back": (0, ["-c", GIVEN_BACK]),
    "plan": (0, ["plan", "gpt2-124m"]),
    "plan elsewhere": (0, ["plan", "gpt2-124m", "--device", "t4"]),
    "plan fp8": (0, ["plan", "gpt2-124m", "--device", "h100", "--fp8"]),
    "plan offload": (0, ["plan", "gpt2-124m", "--gpus", 8, "--dtype", "tf32", "--cpu-offload"]),
    "plan, measured": (0, ["plan", "gpt2-124m", "--bench", "bench.json", "--plot", "plan.svg"]),
    "plan of a run": (0, ["plan", "run"]),
    "plan of a run, elsewhere": (0, ["plan", "run", "--device", "a100-80gb"]),
    "plan, of a card that is not known": (0, ["-c", UNKNOWN]),
}
# what a card cannot give, and its capability
REFUSED: dict[str, tuple[str, list[object]]] = {
    "train tf32": ("7.5", [*STEPS, "--out-dir", "tf32", "--dtype", "tf32"]),
    "train fp8": ("8.0", [*STEPS, "--out-dir", "fp8", "--fp8"]),
    "plan, too few hours": ("8.0", ["plan", "gpt2-124m", "--hours", "1e-9"]),
}


@pytest.mark.thorough
def test_every_branch_for_cuda_is_run_through(
    server: Server,
    short_documents: Path,
    tmp_path: Path,
) -> None:
    by: dict[branches.Line, str] = {}
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    for name, (ranks, line) in COMMANDS.items():
        path = tmp_path / f"{name}.branches"
        arguments = [short_documents if each == "DATA" else each for each in line]
        variables = {"FAKECUDA_BRANCHES": str(path)}
        code = 0
        if line[0] == "doctor":
            code = 1
            variables |= {"TORCHELASTIC_RUN_ID": "doctor"} if ranks else {}
        server.run(*arguments, folder=tmp_path, ranks=ranks, variables=variables, code=code)
        for each in branches.read(path):
            by.setdefault(each, name)
    for name, (capability, line) in REFUSED.items():
        path = tmp_path / f"{name}.branches"
        arguments = [short_documents if each == "DATA" else each for each in line]
        variables = {"FAKECUDA_BRANCHES": str(path)}
        server.run(*arguments, folder=tmp_path, variables=variables, capability=capability, code=78)
        for each in branches.read(path):
            by.setdefault(each, f"{name}, refused")
    wanted = branches.branches()
    for (file, number), text in wanted.items():
        print(f"{file}:{number} | {text} | {by.get((file, number), '-')}")
    assert len(wanted) > 50
    left = {f"{file}:{number} {text}" for (file, number), text in wanted.items()} - {
        f"{file}:{number} {wanted[file, number]}" for file, number in by
    }
    assert left == set()
