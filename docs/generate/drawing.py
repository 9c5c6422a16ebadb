"""What `nanogpt show full` draws, for the tutorial: so its shapes and numbers are the program's."""

from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.diagram_text import draw
from nanogpt_dist.load_config import load


def drawing(preset: str) -> str:
    """The model of a preset, from token ids to loss."""
    config = load(preset)
    model = config.architecture()
    return draw(model, count_parameters(model), trace(model, config.batch_size)) + "\n"
