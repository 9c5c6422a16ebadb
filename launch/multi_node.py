"""Several nodes: check all of them before torchrun starts, and stop waiting in time."""

import sys
from dataclasses import replace

from launch import preflight
from launch.supervisor import Run, Stop
from launch.torchrun import Nodes

ALONE_S = 20.0  # without a rank here, after there were some: the other nodes are out of reach
ELASTIC_ALONE_S = 120.0  # a smaller group takes a while to form


def with_others(run: Run, nodes: Nodes, arguments: list[str]) -> Run:
    """`run` beside other nodes.

    Nodes that come and go are not checked beforehand.
    """
    assert nodes.endpoint is not None
    others = "the other nodes" if nodes.hosts_meeting else f"the node at {nodes.endpoint}"

    def look(stop: Stop) -> None:
        assert nodes.address is not None
        assert nodes.endpoint is not None
        if nodes.rank is None:
            return
        me = preflight.describe(nodes.rank, nodes.address, arguments)
        found = preflight.check(nodes.most, me, nodes.endpoint, lambda: stop.requested)
        if nodes.rank == 0:
            print(f"nanogpt: {', '.join(str(node) for node in found)}", file=sys.stderr)

    return replace(
        run, first=look, alone_s=ELASTIC_ALONE_S if nodes.elastic else ALONE_S, others=others
    )
