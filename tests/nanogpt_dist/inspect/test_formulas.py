"""Parameters counted by hand are those of the model."""

import pytest

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.inspect.architecture import count_parameters
from nanogpt_dist.inspect.formulas import count_by_arithmetic, formulas, letter_sizes
from tests.nanogpt_dist.model.test_options import OPTIONS, SMALL


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_counting_by_hand_gives_what_the_machine_counts(options: dict) -> None:
    config = ModelConfig(**{**SMALL, **options})
    counted = count_parameters(config)  # compares each
    assert counted.by_hand.keys() == counted.by_component.keys() == formulas(config).keys()
    assert count_by_arithmetic(config) == counted.by_component
    assert letter_sizes(config, 1)["V"] == 29
