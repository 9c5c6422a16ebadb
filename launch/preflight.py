"""Before the nodes of a run start: do all come, with one clock, one version and one command?

The node of rank 0 listens where the ranks will meet; each other one says a line of JSON about
itself and gets one back. torchrun would find none of this out: it waits, or breaks in the middle of
the first collective.
"""

import hashlib
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from launch import network
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    ConfigError,
    NanogptError,
    StoppedError,
    StorageError,
)

WAIT_S = 600.0  # for all nodes to come: people start them by hand
CLOCKS_S = 5.0  # by which they may differ
POLL_S = 0.5
MAX_LINE = 10_000  # bytes

Asked = Callable[[], bool]  # whether we are to stop


@dataclass(frozen=True)
class Node:
    """What a node says of itself.

    time: seconds of its clock; command: digest of what each rank is to run.
    """

    rank: int
    host: str
    address: str
    time: float
    nanogpt: str
    torch: str
    command: str

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host}, {self.address})"


def describe(rank: int, address: str, arguments: list[str]) -> Node:
    """This node."""
    digest = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:12]
    return Node(
        rank,
        socket.gethostname(),
        address,
        time.time(),
        _version("nanogpt-dist"),
        _version("torch"),
        digest,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a clone that is not installed
        return "unknown"


def check(nnodes: int, me: Node, endpoint: str, stop: Asked, wait_s: float = WAIT_S) -> list[Node]:
    """All nodes in the order of their ranks, once each is there and fits.

    Called on the node of rank 0 and on the others.

    Raises: ConfigError on all of them if one differs; CannotCreateError if the port is taken;
    StorageError if one does not come within wait_s; StoppedError once `stop`.
    """
    host, port = network.split(endpoint)
    if me.rank == 0:
        return _receive(nnodes, me, port, stop, wait_s)
    return _report(me, (host, port), stop, wait_s)


def refuse_taken(port: int) -> None:
    """Raises: CannotCreateError if something listens on a port of this machine."""
    if who := network.holder(port):
        raise CannotCreateError(
            f"port {port} is taken by {who}; end that, or give another port to --rdzv-endpoint"
        )


def refuse_different(nodes: list[Node], now: float) -> None:
    """Raises: ConfigError if a node's clock, version or command is not that of the first.

    now: this machine's clock when the last of them spoke; each said its own time when it did.
    """
    first = nodes[0]
    for node in nodes[1:]:
        if node.nanogpt != first.nanogpt or node.torch != first.torch:
            raise ConfigError(
                f"{node} has nanogpt {node.nanogpt} and torch {node.torch}, {first} has "
                f"{first.nanogpt} and {first.torch}; install the same on all"
            )
        if node.command != first.command:
            raise ConfigError(
                f"{node} was given another command than {first}; type the same on all nodes"
            )
        if abs(node.time - now) > CLOCKS_S:
            raise ConfigError(
                f"the clock of {node} is {node.time - now:+.0f} s off that of {first}; set it, "
                "e.g. by NTP"
            )


def _receive(nnodes: int, me: Node, port: int, stop: Asked, wait_s: float) -> list[Node]:
    refuse_taken(port)
    came: dict[int, Node] = {0: me}
    callers: list[socket.socket] = []
    deadline = time.monotonic() + wait_s
    try:
        with network.listen(port, nnodes + 8) as server:
            server.settimeout(POLL_S)
            while len(came) < nnodes:
                _go_on(
                    stop,
                    deadline,
                    f"nodes {_missing(came, nnodes)} of {nnodes} did not come; start them, too",
                )
                with suppress(TimeoutError):
                    caller = server.accept()[0]
                    callers.append(caller)
                    node = _read(caller)
                    if node is not None and 0 < node.rank < nnodes:
                        refuse_different([me, node], time.time())
                        came[node.rank] = node
        nodes = [came[rank] for rank in range(nnodes)]
        _answer(callers, {"nodes": [asdict(node) for node in nodes]})
        return nodes
    except OSError as error:
        raise CannotCreateError(
            f"cannot listen on port {port}: {error.strerror}; give another one"
        ) from error
    except NanogptError as error:
        _answer(callers, {"error": str(error)})
        raise
    finally:
        for caller in callers:
            caller.close()


def _missing(came: dict[int, Node], nnodes: int) -> str:
    return ", ".join(str(rank) for rank in range(nnodes) if rank not in came)[:40]


def _report(me: Node, meet: tuple[str, int], stop: Asked, wait_s: float) -> list[Node]:
    deadline = time.monotonic() + wait_s
    at = f"{meet[0]}:{meet[1]}"
    while True:
        _go_on(
            stop,
            deadline,
            f"node 0 at {at} does not answer; start it, and see whether the network reaches it",
        )
        with suppress(OSError), socket.create_connection(meet, timeout=POLL_S * 4) as server:
            server.sendall(json.dumps({**asdict(me), "time": time.time()}).encode() + b"\n")
            if answer := _line(server, stop, deadline):
                return _understood(answer, at)
        time.sleep(POLL_S)


def _understood(answer: bytes, at: str) -> list[Node]:
    try:
        found = json.loads(answer)
        if "error" in found:
            raise ConfigError(str(found["error"]))
        if not found["nodes"]:
            raise ValueError("no nodes")
        return [_node(node) for node in found["nodes"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadDataError(
            f"who answers at {at} is no node of this run; give another port to --rdzv-endpoint"
        ) from error


def _node(said: Any) -> Node:
    """A node of what it says. Raises TypeError for anything else."""
    node = Node(**said)
    kinds = {"rank": int, "time": float}
    if any(type(value) is not kinds.get(name, str) for name, value in asdict(node).items()):
        raise TypeError("no node")
    return node


def _go_on(stop: Asked, deadline: float, otherwise: str) -> None:
    if stop():
        raise StoppedError("stopped; the same command starts over or resumes")
    if time.monotonic() > deadline:
        raise StorageError(otherwise)


def _read(caller: socket.socket) -> Node | None:
    """What a caller says of itself; None for a stranger."""
    caller.settimeout(POLL_S * 4)
    try:
        return _node(json.loads(_line(caller, lambda: False, time.monotonic() + POLL_S * 4)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _line(peer: socket.socket, stop: Asked, deadline: float) -> bytes:
    """A line without its end; b"" if the other side hangs up.

    Raises: OSError, StorageError, StoppedError.
    """
    peer.settimeout(POLL_S)
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_LINE:
        _go_on(
            stop,
            deadline,
            "another node did not finish its sentence; run the same command again on all",
        )
        with suppress(TimeoutError):
            piece = peer.recv(MAX_LINE)
            if not piece:
                return b""
            data += piece
    return data.rstrip(b"\n")


def _answer(callers: list[socket.socket], content: dict[str, Any]) -> None:
    for caller in callers:
        with suppress(OSError):
            caller.sendall(json.dumps(content).encode() + b"\n")
