"""Tables of a page: where runs stand, settings, shares of time, environment. No torch."""

import statistics
from collections.abc import Sequence
from typing import Any

from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.html_report.curves import PARTS, Axes
from nanogpt_dist.html_report.markup import MISSING, Markup, cell, joined, short, table, tag
from nanogpt_dist.inspect import compare_runs
from nanogpt_dist.inspect.run_record import RunRecord, is_number
from nanogpt_dist.inspect.standing import SPENT, seconds_spent
from nanogpt_dist.training.metrics import duration

Figures = dict[str, str]
RECENT = 20  # logged steps that the train loss is the mean of


def badge(record: RunRecord) -> Markup:
    """Its verdict, coloured."""
    verdict = record.verdict or "not begun"
    return tag("span", verdict, class_=f"badge {verdict.replace(' ', '-')}")


def figures_of(record: RunRecord, axes: Axes) -> Figures:
    """Where a run stands: {what: figure}, all of them texts; what is unknown is left out."""
    found: Figures = {}
    val_steps, val = record.series("val_loss")
    if len(val):
        found["val loss"] = f"{val[-1]:.4f}"
        best = int(val.argmin())
        found["best val loss"] = f"{val[best]:.4f} at step {int(val_steps[best]):,}"
    bits = record.last("bits_per_byte")
    if is_number(bits):
        found["bits per byte"] = f"{bits:.3f}"
    _, train = record.series("loss")
    if len(train):
        found["train loss"] = f"{float(train[-RECENT:].mean()):.4f}"
    planned = f" of {record.max_iters:,}" if record.max_iters else ""
    found["steps"] = f"{record.step:,}{planned}"
    if record.tokens is not None:
        found["tokens"] = short(record.tokens)
    _, speeds = record.series("tokens_per_second")
    if len(speeds):
        found["tokens per second"] = short(statistics.median(map(float, speeds)))
    _, used = record.series("mfu")
    if len(used):
        found["MFU"] = f"{statistics.median(map(float, used)):.1%}"
    if len(axes.seconds):
        found["time"] = duration(float(axes.seconds[-1]))
    return found


TILES = {
    "val loss": "best val loss",
    "train loss": "",
    "bits per byte": "",
    "tokens": "steps",
    "tokens per second": "MFU",
    "time": "",
}
BELOW = {"best val loss": "best {}", "steps": "step {}", "MFU": "MFU {}"}


def tiles(figures: Figures) -> Markup:
    """The figures of one run, large; beside each what it is read with."""
    found = []
    for name, below in TILES.items():
        if name not in figures:
            continue
        more = BELOW[below].format(figures[below]) if figures.get(below) else ""
        parts = [tag("dt", name), tag("dd", figures[name]), tag("small", more)]
        found.append(tag("div", joined(parts)))
    return tag("dl", joined(found), class_="tiles")


def standing(
    records: Sequence[RunRecord], names: Sequence[str], figures: Sequence[Figures]
) -> Markup:
    """Several runs in a table, a row each."""
    keys = list(dict.fromkeys(key for each in figures for key in each))
    rows = [
        [
            tag("span", name, class_=f"key c{i % 8}"),
            badge(record),
            *(each.get(key, MISSING) for key in keys),
        ]
        for i, (record, name, each) in enumerate(zip(records, names, figures, strict=True))
    ]
    return table(["run", "", *keys], rows, "standing")


def settings_that_differ(records: Sequence[RunRecord], names: Sequence[str]) -> Markup:
    """Of several runs those that are not the same in all; of one those unlike the default."""
    configs = [record.config for record in records]
    known = [config for config in configs if config is not None]
    if not known:
        return tag("p", records[0].problem)
    if len(records) == 1:
        plain, [config] = TrainConfig(), known
        rows = [
            [tag("code", name), _value(getattr(config, name)), _value(getattr(plain, name))]
            for name in TrainConfig.model_fields
            if getattr(config, name) != getattr(plain, name)
        ]
        every = [
            [tag("code", name), _value(getattr(config, name))] for name in TrainConfig.model_fields
        ]
        summary = tag("summary", f"all {len(every)} settings")
        details = tag("details", joined([summary, table(["setting", "value"], every)]))
        return joined([table(["setting", "value", "default"], rows), details])
    reports = set(settings_where(scope="report"))
    differing = [
        name
        for name in TrainConfig.model_fields
        if name not in reports and len({repr(getattr(each, name)) for each in known}) > 1
    ]
    if not differing:
        return tag("p", "All settings are the same.")
    rows = [
        [tag("code", name), *(None if c is None else _value(getattr(c, name)) for c in configs)]
        for name in differing
    ]
    return table(["setting", *names], rows)


def _value(value: Any) -> object:
    """As it would be typed: no thousands' commas."""
    if value is None:
        return None
    return cell(str(value).lower() if isinstance(value, bool) else str(value))


def at_equal_tokens(records: Sequence[RunRecord], names: Sequence[str]) -> Markup | None:
    """The losses after equally many tokens, as `nanogpt compare` has them; None: unknown."""
    curves = [curve for record in records if (curve := _curve(record)) is not None]
    if len(curves) < len(records):
        return None
    rows = [
        [
            short(row["tokens"]),
            *(
                MISSING if loss is None else f"{loss:.4f}"
                for pair in zip(row["train_loss"], row["val_loss"], strict=True)
                for loss in pair
            ),
        ]
        for row in compare_runs.at_equal_tokens(curves)
    ]
    columns = [f"{name} {kind}" for name in names for kind in ("train", "val")]
    return table(["tokens", *columns], rows)


def _curve(record: RunRecord) -> compare_runs.Curve | None:
    (steps, train), (val_steps, val) = record.series("loss"), record.series("val_loss")
    tokens, val_tokens = record.tokens_at(steps), record.tokens_at(val_steps)
    if record.config is None or tokens is None or val_tokens is None or not record.step:
        return None
    return compare_runs.Curve(record.name, record.config, tokens, train, val_tokens, val, None)


def shares_of_time(records: Sequence[RunRecord], names: Sequence[str]) -> Markup | None:
    """A bar for each run of where its wall time went; None where no run tells."""
    rows = []
    for record, name in zip(records, names, strict=True):
        seconds = seconds_by_part(record)
        if seconds is None:
            continue
        total = sum(seconds.values())
        bars = joined(
            tag("i", "", class_=f"p{i}", style=f"width:{part / total:.4%}", title=what)
            for i, (what, part) in enumerate(seconds.items())
        )
        told = joined(
            tag("span", f"{what} {part / total:.1%} ({duration(part)})", class_=f"key p{i}")
            for i, (what, part) in enumerate(seconds.items())
            if part > 0
        )
        title = tag("h3", name) if len(records) > 1 else ""
        rows += [title, tag("div", bars, class_="bar"), tag("p", told, class_="legend")]
    return joined(rows) if rows else None


def seconds_by_part(record: RunRecord) -> dict[str, float] | None:
    """{computing, data, communication, …: seconds of wall time}; None where lines lack them.

    What no part claims is computing, and what is between the steps.
    """
    spent = seconds_spent(record.train)
    known = any(is_number(line.get(key)) for line in record.train for key in PARTS)
    if spent is None or not known:
        return None
    seconds, found = spent
    parts = {PARTS[key]: found[name] for name, key in SPENT.items()}
    return {"computing": max(0.0, seconds - sum(parts.values())), **parts}


def environment(records: Sequence[RunRecord], names: Sequence[str]) -> Markup | None:
    """run.json of each: how it was started the last time; None where nothing is known."""
    keys = list(dict.fromkeys(key for record in records for key in record.about))
    if not keys:
        return None
    rows = [
        [key.replace("_", " "), *(_plain(record.about.get(key)) for record in records)]
        for key in keys
    ]
    return table(["", *names] if len(records) > 1 else ["", "value"], rows)


def _plain(value: Any) -> object:
    return value if value is None else str(value)
