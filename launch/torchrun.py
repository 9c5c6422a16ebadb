"""torchrun's command line and environment for any command, as pure functions."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launch import network
from nanogpt_dist.errors import UsageError

OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

COUNT = "[0-9]{1,6}"  # of ranks, nodes or GPUs
LAST_CALL_S = 10  # that fewer nodes than may come wait for more, once there are enough
# without a GPU: enough to see that a run is distributed; more ranks make a CPU no faster
MAX_AUTO_CPU_RANKS = 2


@dataclass(frozen=True)
class Nodes:
    """How many nodes, which this is, and where they meet.

    Elastic: as many as come, from `least` to `most`.
    """

    least: int = 1
    most: int = 1
    rank: int | None = None
    endpoint: str | None = None  # HOST:PORT
    address: str | None = None  # this node's own, on the way there
    hosts_meeting: bool = True  # whether the endpoint is on this node

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    @property
    def several(self) -> bool:
        return self.most > 1

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.elastic else str(self.most)


def nodes_of(nnodes: str, node_rank: int | None, rdzv_endpoint: str | None) -> Nodes:
    """The Nodes of --nnodes N or MIN:MAX, with this node's own address on the way to the others.

    Raises: UsageError if the settings contradict each other; MissingInputError if the way is not
    known.
    """
    match = re.fullmatch(f"({COUNT})(?::({COUNT}))?", nnodes)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise UsageError(
            f"--nnodes {nnodes[:40]!r}: give a number, or the fewest and the most like 1:4"
        )
    nodes = Nodes(least, most, node_rank, rdzv_endpoint)
    _check(nodes)
    if rdzv_endpoint is None:
        return nodes
    meeting = network.resolve(network.split(rdzv_endpoint)[0])
    address = network.own_address(meeting)
    return replace(
        nodes, address=address, hosts_meeting=address == meeting or meeting.startswith("127.")
    )


def _check(nodes: Nodes) -> None:
    if not nodes.several and (nodes.rank or nodes.endpoint):
        raise UsageError(
            "--node-rank and --rdzv-endpoint are for several nodes: add --nnodes N, or leave them "
            "out"
        )
    if nodes.several and not nodes.endpoint:
        raise UsageError(
            f"{nodes} nodes need a place to meet: add --rdzv-endpoint HOST:PORT, HOST being the "
            "first node"
        )
    if nodes.endpoint and not _is_address(nodes.endpoint):
        raise UsageError(
            f"--rdzv-endpoint {nodes.endpoint[:60]!r} is not HOST:PORT: write it like "
            "10.0.0.1:29500"
        )
    if nodes.elastic and nodes.rank is not None:
        raise UsageError(f"--nnodes {nodes} numbers the nodes as they come: leave out --node-rank")
    if nodes.rank is not None and not 0 <= nodes.rank < nodes.most:
        raise UsageError(f"--node-rank {nodes.rank} of {nodes} nodes: give 0 to {nodes.most - 1}")


def command(
    nproc_per_node: int,
    nodes: Nodes,
    max_restarts: int,
    arguments: list[str],
) -> list[str]:
    """The command that runs `nanogpt ARGUMENTS` in `nproc_per_node` ranks of this node.

    One node needs no address. Several meet at their endpoint: with a rank in the order of the node
    ranks, without one in the order of their arrival. Raises: UsageError.
    """
    if nproc_per_node < 1:
        raise UsageError(f"{nproc_per_node} ranks: give at least 1 to --nproc-per-node")
    return [
        *(
            sys.executable,
            "-m",
            "nanogpt_dist.distributed.torchrun_agent",
        ),  # torchrun, less talkative
        *("--nproc-per-node", str(nproc_per_node)),
        *_rendezvous(nodes),
        *("--max-restarts", str(max_restarts)),
        *("-m", "nanogpt_dist", *arguments),
    ]


def environment_of_nodes(nodes: Nodes, base: Mapping[str, str]) -> dict[str, str]:
    """What ranks of several nodes need to find each other.

    Goes on top of `base`; what stands there already holds.
    """
    added = {}
    if nodes.address is not None and (interface := network.interface_of(nodes.address)):
        added = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    if nodes.several and nodes.rank is None:
        # else who joins later reads the addresses of the dead
        added["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return {name: value for name, value in added.items() if name not in base}


def inherited(base: Mapping[str, str]) -> dict[str, str]:
    """`base` without what another torchrun or a Kubeflow pod left in it.

    Our command line says all of that.
    """
    return {
        name: value
        for name, value in base.items()
        if not name.startswith("PET_") and name not in OF_A_RANK
    }


def environment(
    nproc_per_node: int,
    shutdown_timeout_s: int,
    base: Mapping[str, str],
) -> dict[str, str]:
    """The variables that torchrun needs on top of `base`, the environment that it inherits."""
    # seconds from its SIGTERM to its SIGKILL
    added = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(shutdown_timeout_s)}
    if "TORCH_CPP_LOG_LEVEL" not in base:  # its warnings are about names that need not resolve
        added["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    if "OMP_NUM_THREADS" not in base:  # torchrun would take 1, and warn
        added["OMP_NUM_THREADS"] = str(max(1, cores() // nproc_per_node))
    return {**added, **python_path(base)}


def python_path(base: Mapping[str, str]) -> dict[str, str]:
    """PYTHONPATH on top of `base`, where a process finds nanogpt_dist in a clone.

    Nothing where it is installed, or stands in `base` already.
    """
    clone = Path(__file__).resolve().parents[1]
    inherited = [folder for folder in base.get("PYTHONPATH", "").split(os.pathsep) if folder]
    # in a wheel we lie inside nanogpt_dist
    if (clone / "nanogpt_dist").is_dir() and str(clone) not in inherited:
        return {"PYTHONPATH": os.pathsep.join([str(clone), *inherited])}
    return {}


def pasteable(command: list[str], environment: Mapping[str, str]) -> str:
    """`command` with the variables of `environment` as one line for a shell."""
    return shlex.join(
        ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
    )


def ranks(nproc_per_node: str) -> int:
    """Ranks on this node: the number itself, or for "auto" one per GPU.

    Without a GPU one per core, at most 2.

    Raises: UsageError if it is neither.
    """
    if nproc_per_node == "auto":
        return gpus() or min(cores(), MAX_AUTO_CPU_RANKS)
    if not re.fullmatch(COUNT, nproc_per_node):
        raise UsageError(
            f"--nproc-per-node {nproc_per_node[:40]!r} is neither a number nor auto: write "
            "--nproc-per-node 2"
        )
    return int(nproc_per_node)


def gpus() -> int:
    """Number of NVIDIA GPUs that a process started here would see, asked without torch."""
    there = _gpus_of_machine()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not there:
        return there
    names = [name.strip() for name in visible.split(",")]
    good = [
        bool(name) and (not re.fullmatch("-*[0-9]+", name) or _is_below(name, there))
        for name in names
    ]
    return good.index(False) if False in good else len(names)  # CUDA ignores what follows a bad one


def _is_below(number: str, there: int) -> bool:
    return bool(re.fullmatch(COUNT, number)) and int(number) < there


def _gpus_of_machine() -> int:
    """All of them, as nvidia-smi lists them; where it is missing, or fails, as the driver does."""
    tool = shutil.which("nvidia-smi")
    with suppress(OSError, subprocess.TimeoutExpired):
        if tool is not None:
            listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
            if listing.returncode == 0:
                return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return sum(
        path.name.removeprefix("nvidia").isdecimal() for path in Path("/dev").glob("nvidia[0-9]*")
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rendezvous(nodes: Nodes) -> list[str]:
    if nodes.endpoint is None:
        # a free port, and no need for the host's name to resolve
        return ["--standalone", "--local-addr", "127.0.0.1"]
    host, port = network.split(nodes.endpoint)
    line = [
        "--nnodes",
        str(nodes),
        "--rdzv-endpoint",
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
    ]
    if nodes.address is not None:
        line += ["--local-addr", nodes.address]  # nor here
    if nodes.rank is None:
        conf = f"is_host={int(nodes.hosts_meeting)},last_call_timeout={LAST_CALL_S}"
        return [*line, "--rdzv-backend", "c10d", "--rdzv-id", "nanogpt", "--rdzv-conf", conf]
    return [*line, "--rdzv-backend", "static", "--node-rank", str(nodes.rank)]


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host and re.fullmatch("[0-9]{1,5}", port)) and 0 < int(port) < 65536
