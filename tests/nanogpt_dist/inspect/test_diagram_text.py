"""The drawing of a model in the terminal: straight lines, its shapes and its counts."""

import pytest

from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.diagram_text import draw
from nanogpt_dist.load_config import load
from nanogpt_dist.presets import PRESETS
from tests.nanogpt_dist.inspect.test_architecture import show


@pytest.mark.parametrize("preset", PRESETS)
def test_drawing_is_straight(preset: str) -> None:
    config = load(preset)
    lines = draw(config, count_parameters(config), trace(config, config.batch_size)).splitlines()
    framed = [line for line in lines if line[0] in "╔║╚"]
    assert {len(line) for line in framed} == {90}
    assert all(line[-1] in "╗║╝" for line in framed)
    # The centre line is unbroken from the sum of the embeddings to the logits; inside of the boxes
    # runs their text.
    assert all(
        line[40] in "│▼┬┤+╤"
        or any(text in line for text in ("│ h.", "│ softmax(q kᵀ"))
        or line[10:].startswith(("│ l", "│ smear"))
        for line in lines[4:]
    )


def test_drawing_tells_shapes_and_counts() -> None:
    text = show("full", "gpt2-124m")
    for part in (
        "124,373,760",
        "block × 12",
        "38,633,472",
        "7,079,424 each",
        "(B, H, T, D) = (12, 12, 1024, 64)",
        "10.826",
    ):
        assert part in text, part
