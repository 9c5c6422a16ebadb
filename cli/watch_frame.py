"""One frame of `nanogpt watch`: runs as panels, or as rows where they do not fit."""

from typing import TYPE_CHECKING, Any

from cli.terminal import visible
from nanogpt_dist.inspect.run_record import RunRecord
from nanogpt_dist.inspect.standing import ENDED
from nanogpt_dist.inspect.text_plot import plot_lines
from nanogpt_dist.training.metrics import duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

COLOURS = {"running": "green", "done": "blue", "stopped": "yellow"}  # of a verdict; else red
LEAST_PLOT, MOST_PLOT = 4, 14  # lines of a plot; with fewer there is none
SHOWN_SHARE = 0.005  # of an interval: what took less is not shown
Figures = dict[str, Any]


def frame(
    runs: list[tuple[RunRecord, Figures]],
    width: int,
    height: int,
    plain: bool = False,
    note: str = "",
) -> "RenderableType":
    """All runs on `width` × `height` characters; those that go on first, as panels if they fit.

    plain: ASCII only, but for what the terminal's encoding replaces. note: a line below.
    """
    from rich.console import Group
    from rich.text import Text

    runs = sorted(runs, key=lambda one: one[1]["verdict"] in ENDED)
    lines = [_lines(figures, width - 4) for _, figures in runs]
    height -= 1 + bool(note)
    count = _panels_that_fit([len(each) + 2 for each in lines], height)
    going = sum(one["verdict"] not in ENDED for _, one in runs[:count]) or count  # have a plot
    left = height - sum(len(each) + 2 for each in lines[:count])
    left -= len(runs) - count + 1 if count < len(runs) else 0
    room = min(MOST_PLOT, left // going) if going else 0
    parts = []
    for i, (record, figures) in enumerate(runs[:count]):
        plot = _plot(record, width - 4, room, plain) if i < going and room >= LEAST_PLOT else []
        parts.append(_panel(figures, [*lines[i], *plot], plain))
    if count < len(runs):
        rows = [figures for _, figures in runs[count:]]
        fit = len(rows) if count or len(rows) <= height else max(1, height - 1)
        parts.append(_table(rows[:fit], width))
        if fit < len(rows):
            parts.append(Text(f"… {len(rows) - fit:,} more"[:width], style="dim"))
    if note:
        parts.append(Text(visible(note), style="dim"))
    return Group(*parts)


def _panels_that_fit(heights: list[int], height: int) -> int:
    """How many runs, the first first, have a panel where each of the others has a line below."""
    for count in range(len(heights), 0, -1):
        others = len(heights) - count
        if sum(heights[:count]) + (others + 1 if others else 0) <= height:
            return count
    return 0


def _panel(figures: Figures, lines: "list[Text]", plain: bool) -> "RenderableType":
    from rich import box
    from rich.panel import Panel
    from rich.text import Text

    colour = _colour(figures)
    title = Text(visible(figures["run"]), style="bold")
    title.append(" - " if plain else " · ")
    title.append(visible(figures["verdict"] or "not begun"), style=f"bold {colour}")
    return Panel(
        Text("\n").join(lines),
        title=title,
        title_align="left",
        border_style=colour,
        box=box.ASCII if plain else box.ROUNDED,
    )


def _colour(figures: Figures) -> str:
    return COLOURS.get(figures["verdict"] or "", "red" if figures["verdict"] else "default")


def _lines(figures: Figures, width: int) -> "list[Text]":
    """The figures of a run in lines of `width`: parts that do not fit on one begin the next."""
    from rich.text import Text

    lines: list[Text] = []
    for parts in (_progress(figures), _pace(figures), _time(figures), _saved(figures)):
        line = ""
        for part in (visible(part) for part in parts):
            if line and len(line) + 3 + len(part) > width:
                lines.append(Text(line[:width]))
                line = ""
            line = f"{line} · {part}" if line else part
        if line:
            lines.append(Text(line[:width]))
    if (told := figures["straggler"]) is not None:
        text = (
            f"straggler: rank {told.get('rank')} on {told.get('host')}, "
            f"{told['factor'] or 0:.1f} times as long as the others (step {told['step']:,})"
        )
        lines.append(Text(visible(text)[:width], style="bold yellow"))
    if figures["message"]:
        style = "" if figures["verdict"] == "stopped" else "red"
        lines.append(Text(visible(figures["message"])[: 2 * width], style=style))
    return lines


def _progress(figures: Figures) -> list[str]:
    step, most = figures["step"], figures["max_iters"]
    parts = [f"step {step:,}" + (f"/{most:,} ({step / most:.0%})" if most else "")]
    if figures["eta_s"] is not None:
        parts.append(f"eta {duration(figures['eta_s'])}")
    if figures["loss"] is not None:
        parts.append(f"loss {figures['loss']:.4f}")
    if figures["val_loss"] is not None:
        parts.append(
            f"val {figures['val_loss']:.4f} (best {figures['best_val_loss']:.4f} at "
            f"{figures['best_step']:,})"
        )
    if figures["learning_rate"] is not None:
        parts.append(f"lr {figures['learning_rate']:.2e}")
    if figures["grad_norm"] is not None:
        parts.append(f"norm {figures['grad_norm']:.2f}")
    return parts


def _pace(figures: Figures) -> list[str]:
    parts = []
    if figures["tokens_per_second"]:
        expected = figures["expected_tokens_per_second"]
        of = f" of {expected:,.0f} planned" if expected else ""
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s{of}")
    if figures["mfu"] is not None:
        parts.append(f"mfu {figures['mfu']:.1%}")
    if figures["ranks"]:
        parts.append(f"{figures['ranks']} ranks" if figures["ranks"] != 1 else "1 rank")
    if figures["memory_bytes"]:
        used, held = figures["memory_bytes"] / 1e9, figures["memory_reserved_bytes"]
        parts.append(f"{used:.1f} GB" + (f" of {held / 1e9:.1f} reserved" if held else ""))
    if figures["gpu_temperature_c"] is not None:
        parts.append(f"{figures['gpu_temperature_c']} °C")
    if figures["gpu_clock_mhz"] is not None:
        parts.append(f"{figures['gpu_clock_mhz']:,} MHz")
    return parts


def _time(figures: Figures) -> list[str]:
    shares = figures["shares"] or {}
    parts = [f"{name} {share:.0%}" for name, share in shares.items() if share > SHOWN_SHARE]
    if figures["slowest_factor"] is not None:
        parts.append(
            f"slowest: rank {figures['slowest_rank']}, {figures['slowest_factor']:.2f} times"
        )
    return parts


def _saved(figures: Figures) -> list[str]:
    """The last checkpoint, and what happened last beside saves."""
    if not figures["checkpoint"]:
        return ["nothing saved yet"]
    age = figures["checkpoint_age_s"]
    when = f", {duration(age)} ago" if age is not None else ""
    parts = [f"saved {figures['checkpoint']}{when}"]
    other = [event for event in figures["events"] if event["event"] not in ("save", "straggler")]
    return parts + [f"{event['event']} at {event['step']:,}" for event in other[-3:]]


def _plot(record: RunRecord, width: int, height: int, plain: bool) -> "list[Text]":
    from rich.text import Text

    x, y = record.series("loss")
    points = list(zip(*(each.tolist() for each in record.series("val_loss")), strict=True))
    lines = plot_lines(x.astype(float), y, width, height, points, plain)
    return [Text(line, style="cyan") for line in lines]


def _table(rows: list[Figures], width: int) -> "RenderableType":
    """A line for each run; a narrow terminal has fewer columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, width=width, show_edge=False)
    for name in ("run", "verdict", "step", "loss", "val", "tokens/s", "eta")[
        : 7 if width >= 80 else 4
    ]:
        right = name not in ("run", "verdict")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for one in rows:
        losses = [one["loss"], one["val_loss"]]
        speed, eta = one["tokens_per_second"], one["eta_s"]
        cells = [
            Text(visible(one["run"])),
            Text(visible(one["verdict"] or "not begun"), style=_colour(one)),
            Text(f"{one['step']:,}"),
            *(Text("–" if loss is None else f"{loss:.4f}") for loss in losses),
            Text("–" if not speed else f"{speed:,.0f}"),
            Text("–" if eta is None else duration(eta)),
        ]
        table.add_row(*cells[: len(table.columns)])
    return table
