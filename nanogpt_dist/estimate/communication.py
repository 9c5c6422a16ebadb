"""What ranks send each other in a step: bytes, time over the given links, what hides in computing.

A ring of n ranks reduces S bytes with 2·S·(n − 1)/n sent by each, and gathers or reduce-scatters
them with S·(n − 1)/n, which is the least that any algorithm sends. Links are taken at their full
rate, one direction; nothing is added for latency. Ranks of a node are neighbours, as torchrun
numbers them; where a group spans nodes, one ring crosses each node's border for each of its groups
that does, and all share the node's network.

Sources: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"; Rajbhandari et al. 2020,
"ZeRO", §7; Li et al. 2020, "PyTorch Distributed", §3.2.3 (overlap).
"""

from dataclasses import dataclass

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.pass_memory import FP32, count_parameters

BUCKET_MIB = 25  # torch's, of ddp


@dataclass(frozen=True)
class Links:
    """Bytes per second, one direction: of a rank within its node, and of a node to the others."""

    link: float
    network: float
    ranks_per_node: int


@dataclass(frozen=True)
class Pass:
    """Seconds of computing in one micro-batch of a rank, and how many there are in a step."""

    forward: float
    backward: float
    micro_batches: int


@dataclass(frozen=True)
class Collective:
    """One kind of exchange in a step. sent_bytes: by a rank, in all. over: link or network.

    hidden_seconds: of its seconds, those in which the rank computes meanwhile.
    """

    name: str
    sent_bytes: int
    over: str
    seconds: float
    hidden_seconds: float


@dataclass(frozen=True)
class Group:
    """Ranks that exchange: how many, and by how much their numbers differ."""

    size: int
    stride: int = 1

    def spans_nodes(self, links: Links) -> bool:
        """Whether not all of them are on one node."""
        return (self.size - 1) * self.stride >= links.ranks_per_node

    def seconds(self, sent_bytes: float, links: Links) -> float:
        """Time in which each rank sends so many bytes."""
        if not self.spans_nodes(links):
            return sent_bytes / links.link
        rings = min(self.stride, links.ranks_per_node)  # through one node's border
        return max(sent_bytes / links.link, rings * sent_bytes / links.network)


def communication(
    config: TrainConfig,
    layout: Layout,
    links: Links,
    computing: Pass,
    product_bytes: int = 2,
) -> list[Collective]:
    """The Collectives of one step; product_bytes: of a number in a matrix product.

    config.vocab_size must be set.
    """
    found = []
    if layout.strategy == "ddp":
        found.append(_ddp(config, layout, links, computing))
    elif layout.strategy == "fsdp":
        found += _fsdp(config, layout, links, computing, product_bytes)
    if config.optimizer == "muon" and layout.replicate * layout.shard > 1:
        found += _muon(config, layout, links, product_bytes)
    return [each for each in found if each.sent_bytes]


def exposed_seconds(collectives: list[Collective]) -> float:
    """Seconds of a step in which a rank does nothing but wait for others."""
    return sum(each.seconds - each.hidden_seconds for each in collectives)


def _ddp(config: TrainConfig, layout: Layout, links: Links, computing: Pass) -> Collective:
    """Gradients in float32, in buckets, while the last backward pass goes on behind them."""
    n, size = layout.replicate, FP32 * count_parameters(config).total
    bucket = (config.bucket_cap_mb or BUCKET_MIB) * 2**20
    last = min(1.0, bucket / size)  # the share of the bucket that is full when all is computed
    return _collective(
        "all-reduce of gradients",
        Group(n),
        2 * size * (n - 1) / n,
        links,
        (1 - last, computing.backward),
    )


def _fsdp(
    config: TrainConfig,
    layout: Layout,
    links: Links,
    computing: Pass,
    low: int,
) -> list[Collective]:
    """Weights are gathered in each pass, gradients of the last one reduced; copies add up theirs.

    Each gathering hides behind the block before; the first, with what is in no block, does not.
    """
    P, s, r = count_parameters(config), layout.shard, layout.replicate
    row, column = Group(s), Group(r, stride=s)
    share, passes = (s - 1) / s, computing.micro_batches
    first = (P.root + P.block) / P.total
    weights = low * P.total * share
    # the root stays from forward to backward pass
    again = low * (P.total - P.root) * share if config.reshard_after_forward else 0
    gathered = [
        _collective(
            f"all-gather of weights, {name}",
            row,
            passes * size,
            links,
            (1 - first if name == "forward" else 1 - P.block / P.total, passes * seconds),
        )
        for name, size, seconds in (
            ("forward", weights, computing.forward),
            ("backward", again, computing.backward),
        )
    ]
    # what the last backward pass has left behind its gathering
    left = max(0.0, computing.backward - gathered[1].seconds / passes)
    last = (P.root + P.block) / P.total  # the first block's gradients and the embeddings' come last
    reduced = _collective(
        "reduce-scatter of gradients", row, FP32 * P.total * share, links, (1 - last, left)
    )
    size = 2 * FP32 * P.total / s * (r - 1) / r
    behind = (1 - last, max(0.0, left - reduced.seconds))
    return [*gathered, reduced, _collective("all-reduce over copies", column, size, links, behind)]


def _muon(config: TrainConfig, layout: Layout, links: Links, low: int) -> list[Collective]:
    """Each matrix is orthogonalized on one rank: it travels there, and its update to all."""
    s, r = layout.shard, layout.replicate
    size = low * config.n_layer * count_parameters(config).matrices
    there_and_back = 2 * size / (r * s) * (s - 1) / s
    copies = size / s * (r - 1) / r
    return [
        _collective("all-to-all of matrices", Group(s), there_and_back, links, (0, 0)),
        _collective("all-gather of updates", Group(r, stride=s), copies, links, (0, 0)),
    ]


def _collective(
    name: str,
    group: Group,
    sent_bytes: float,
    links: Links,
    behind: tuple[float, float],
) -> Collective:
    """behind: the share of it that may go on beside computing, and the seconds of that."""
    seconds = group.seconds(sent_bytes, links)
    over = "network" if group.spans_nodes(links) else "link"
    return Collective(name, round(sent_bytes), over, seconds, min(behind[0] * seconds, behind[1]))
