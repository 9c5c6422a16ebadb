"""torchrun's command line and environment for any `nanogpt` command, as pure functions of what was asked for."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nanogpt_dist.errors import UsageError

MAX_AUTO_CPU_RANKS = 2  # without a GPU: enough to see that a run is distributed; more ranks make a CPU no faster


def command(
    nproc_per_node: int,
    nnodes: int,
    node_rank: int | None,
    rdzv_endpoint: str | None,
    max_restarts: int,
    arguments: list[str],
) -> list[str]:
    """The command that runs `nanogpt ARGUMENTS` in nnodes × nproc_per_node ranks, of which this node's are started.

    One node needs no address. Several meet at `rdzv_endpoint`, "HOST:PORT" on the first node: with a `node_rank` in
    the order of the node ranks, without one in the order of their arrival.

    Raises: UsageError if the settings do not fit together.
    """
    check(nproc_per_node, nnodes, node_rank, rdzv_endpoint)
    return [
        *(sys.executable, "-m", "nanogpt_dist.agent"),  # torchrun, less talkative
        *("--nproc-per-node", str(nproc_per_node)),
        *_rendezvous(nnodes, node_rank, rdzv_endpoint),
        *("--max-restarts", str(max_restarts)),
        *("-m", "nanogpt_dist", *arguments),
    ]


def check(nproc_per_node: int, nnodes: int, node_rank: int | None, rdzv_endpoint: str | None) -> None:
    """Raises UsageError if the settings of `command` contradict each other or name no address."""
    if nproc_per_node < 1 or nnodes < 1:
        raise UsageError(f"{nnodes} nodes × {nproc_per_node} ranks: give at least 1 to --nnodes and --nproc-per-node")
    if nnodes == 1 and (node_rank or rdzv_endpoint):
        raise UsageError("--node-rank and --rdzv-endpoint are for several nodes: add --nnodes N, or leave them out")
    if nnodes > 1 and not rdzv_endpoint:
        raise UsageError(
            f"{nnodes} nodes need a place to meet: add --rdzv-endpoint HOST:PORT, HOST being the first node"
        )
    if rdzv_endpoint and not _is_address(rdzv_endpoint):
        raise UsageError(f"--rdzv-endpoint {rdzv_endpoint!r} is not HOST:PORT: write it like 10.0.0.1:29500")
    if node_rank is not None and not 0 <= node_rank < nnodes:
        raise UsageError(f"--node-rank {node_rank} of {nnodes} nodes: give 0 to {nnodes - 1}")


def environment(nproc_per_node: int, shutdown_timeout_s: int, base: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun needs on top of `base`, the environment that it inherits."""
    added = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(shutdown_timeout_s)}  # seconds from its SIGTERM to its SIGKILL
    if "OMP_NUM_THREADS" not in base:  # torchrun would take 1, and warn
        added["OMP_NUM_THREADS"] = str(max(1, cores() // nproc_per_node))
    clone = Path(__file__).resolve().parents[1]
    inherited = [folder for folder in base.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if (clone / "nanogpt_dist").is_dir() and str(clone) not in inherited:  # in a wheel we lie inside nanogpt_dist
        added["PYTHONPATH"] = os.pathsep.join([str(clone), *inherited])
    return added


def pasteable(command: list[str], environment: Mapping[str, str]) -> str:
    """`command` with the variables of `environment` as one line for a shell."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *command])


def ranks(nproc_per_node: str) -> int:
    """Ranks on this node: the number itself, or for "auto" one per GPU; without a GPU one per core, at most 2.

    Raises: UsageError if it is neither.
    """
    if nproc_per_node == "auto":
        return gpus() or min(cores(), MAX_AUTO_CPU_RANKS)
    if not nproc_per_node.isdecimal():
        raise UsageError(f"--nproc-per-node {nproc_per_node!r} is neither a number nor auto: write --nproc-per-node 2")
    return int(nproc_per_node)


def gpus() -> int:
    """Number of NVIDIA GPUs that a process started here would see, asked without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA ignores what follows
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rendezvous(nnodes: int, node_rank: int | None, rdzv_endpoint: str | None) -> list[str]:
    if rdzv_endpoint is None:
        return ["--standalone", "--local-addr", "127.0.0.1"]  # a free port, and no need for the host's name to resolve
    nodes = ["--nnodes", str(nnodes), "--rdzv-endpoint", rdzv_endpoint]
    if node_rank is None:
        return [*nodes, "--rdzv-backend", "c10d", "--rdzv-id", "nanogpt"]
    return [*nodes, "--rdzv-backend", "static", "--node-rank", str(node_rank)]


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536
