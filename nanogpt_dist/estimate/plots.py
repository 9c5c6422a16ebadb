"""The memory of a rank under each strategy, by what takes it, as a picture (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path

from nanogpt_dist.estimate.memory_plan import Alternative
from nanogpt_dist.inspect.compare_runs import new_figure, save_figure

GB = 1e9


def plot_memory(ways: Sequence[Alternative], device_bytes: int, title: str, out: Path) -> None:
    """Draw a bar for each of `ways`, and the device's memory as a line.

    Raises ConfigError without matplotlib, StorageError.
    """
    figure = new_figure(max(7.0, 1.2 * len(ways)), 5.5)
    axes = figure.add_subplot()
    names = [
        f"{way.strategy}\n{way.layout.activation_checkpointing}\n{way.layout.batch_size} × "
        f"{way.micro_batches:,}"
        for way in ways
    ]
    bottom = [0.0] * len(ways)
    for number, part in enumerate(ways[0].parts):
        heights = [way.parts[part] / GB for way in ways]
        if any(heights):
            axes.bar(names, heights, bottom=bottom, label=part, color=f"C{number}", width=0.7)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axhline(device_bytes / GB, color="black", linestyle="--", label="the device has")
    axes.set_ylabel("GB of a rank at its peak")
    axes.set_xlabel("strategy, activation checkpointing, sequences × micro-batches")
    axes.set_title(title)
    axes.legend(fontsize="small", ncols=2)
    save_figure(figure, out)
