"""The speed that a training is expected to have where it runs, as `nanogpt plan` would say it."""

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.estimate.accelerators import accelerator, name_of
from nanogpt_dist.estimate.mfu import is_published
from nanogpt_dist.estimate.time import duration
from nanogpt_dist.estimate.training_plan import Machines, speed_of
from nanogpt_dist.inspect.formulas import count_by_arithmetic

NETWORK, DISK = 50e9, 1e9  # bytes per second, as plan's own --network and --disk


def expected_tokens_per_second(
    config: TrainConfig,
    layout: Layout,
    torch_name: str,
    ranks: int,
    ranks_per_node: int,
) -> float | None:
    """Tokens per second over all ranks, of the last piece of a ramp. Nothing is measured.

    torch_name: of the GPU. None: the catalogue does not have it, or nobody has published what it
    reaches with a model of about that size. config.vocab_size must be set.
    """
    name = name_of(torch_name)
    parameters = sum(count_by_arithmetic(config).values())
    if name is None or ranks % ranks_per_node or not is_published(name, parameters):
        return None
    machines = Machines(accelerator(name), ranks, ranks // ranks_per_node, NETWORK, DISK)
    try:
        speed = speed_of(config, machines)
    except NanogptError:  # exact float32, whose peak is not known
        return None
    return duration(config, layout, speed).step.tokens_per_second
