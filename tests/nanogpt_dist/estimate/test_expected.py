"""The speed that a run is expected to have is that of its plan."""

import pytest

from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.estimate.accelerators import accelerator
from nanogpt_dist.estimate.expected import DISK, NETWORK, expected_tokens_per_second
from nanogpt_dist.estimate.quantities import rate_of
from nanogpt_dist.estimate.training_plan import Data, Machines, make_plan
from nanogpt_dist.load_config import load, with_vocabulary

H100 = "NVIDIA H100 80GB HBM3"
WHOLE = Layout("ddp", 8, 1, batch_size=12)


@pytest.mark.parametrize("nodes", [1, 4])
def test_it_is_that_of_the_plan(nodes: int) -> None:
    config = with_vocabulary(load("gpt2-350m"))
    planned = make_plan(
        config,
        Machines(
            accelerator("h100-80gb"),
            8 * nodes,
            nodes,
            rate_of("400gbit", "--network"),
            rate_of("1GB/s", "--disk"),
        ),
        Data(),
    )
    found = expected_tokens_per_second(config, planned.best.layout, H100, 8 * nodes, 8)
    assert found == planned.duration.step.tokens_per_second
    assert (NETWORK, DISK) == (50e9, 1e9)


@pytest.mark.parametrize(
    ("preset", "settings", "device"),
    [
        ("gpt2-350m", {}, "NVIDIA GeForce RTX 2050 Laptop GPU"),  # not in the catalogue
        ("gpt2-350m", {}, "NVIDIA L4"),  # of which nobody has published any
        ("quickstart", {}, H100),  # much smaller than any of which somebody has
        ("gpt2-350m", {"dtype": "float32"}, H100),  # whose peak is not known
    ],
)
def test_it_is_unknown_where_nothing_is_known(
    preset: str, settings: dict[str, object], device: str
) -> None:
    config = with_vocabulary(load(preset, settings))
    assert expected_tokens_per_second(config, WHOLE, device, 8, 8) is None
