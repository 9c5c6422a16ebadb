"""A page about one run or several: one HTML file that needs nothing else. No torch."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanogpt_dist import __version__
from nanogpt_dist.html_report import happenings, sections
from nanogpt_dist.html_report.curves import Chart, axes_of, chart_data
from nanogpt_dist.html_report.markup import Markup, escaped, joined, json_text, section, tag
from nanogpt_dist.inspect.run_record import RunRecord

ROOM = Path(__file__).parent
# no address is read, whatever stands in a run's files, and no script runs but ours
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
CONTROLS = Markup(
    '<nav class="controls" id="controls" hidden>'
    '<fieldset id="axis"><legend>over</legend></fieldset>'
    '<label id="smooth">smoothing <input type="range" min="0" max="0.99" step="0.01" value="0.8">'
    '</label><span id="runs"></span><button id="whole" hidden>whole run</button></nav>'
)


def page(records: Sequence[RunRecord]) -> bytes:
    """The HTML file about these runs, UTF-8; the same bytes for the same files."""
    names = names_of(records)
    axes = [axes_of(record) for record in records]
    charts, curves = chart_data(records)
    samples = [happenings.samples_data(record) for record in records]
    data = {
        "charts": [_for_script(chart) for chart in charts],
        "runs": [
            {
                "name": name,
                "curves": curves[i],
                "marks": happenings.marks(record, axes[i]),
                "samples": samples[i],
            }
            for i, (record, name) in enumerate(zip(records, names, strict=True))
        ],
    }
    figures = [sections.figures_of(*pair) for pair in zip(records, axes, strict=True)]
    parts = [
        _head(records, names, figures),
        _charts(charts),
        *_samples(samples, names),
        tag(
            "div",
            joined(_tables(records, names)),
            class_="columns" if len(records) <= 2 else "",
        ),
        tag("footer", f"nanogpt-dist {__version__}"),
    ]
    script = (ROOM / "report.js").read_text(encoding="utf-8")
    text = PAGE.format(
        policy=POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        title=escaped(" · ".join(names)),
        style=(ROOM / "report.css").read_text(encoding="utf-8"),
        body=joined(parts),
        data=json_text(data),
        script=script,
    )
    return text.encode("utf-8", "replace")  # JSON may hold half a surrogate pair


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; where two folders have one name, their paths."""
    count = Counter(record.name for record in records)
    return [record.name if count[record.name] == 1 else str(record.folder) for record in records]


def _for_script(chart: Chart) -> dict[str, object]:
    return {
        "name": chart.name,
        "title": chart.title,
        "unit": chart.unit,
        "lines": chart.lines,
        "factor": chart.factor,
        "log": chart.log,
        "zero": chart.zero,
    }


def _head(
    records: Sequence[RunRecord],
    names: Sequence[str],
    figures: Sequence[sections.Figures],
) -> Markup:
    """Whose page it is, and where they stand."""
    if len(records) > 1:
        title = tag("h1", f"{len(records)} runs")
        return tag("header", joined([title, sections.standing(records, names, figures)]))
    [record], [name] = records, names
    title = tag("h1", joined([name, " ", sections.badge(record)]))
    message = record.status.get("message")
    said = tag("p", message, class_="message") if message else ""
    return tag("header", joined([title, said, sections.tiles(figures[0])]))


def _charts(charts: Sequence[Chart]) -> Markup:
    """Places that report.js draws into."""
    if not charts:
        return tag("section", tag("p", "No step is logged yet."))
    figures = joined(
        tag("figure", tag("figcaption", chart.title), id=f"chart-{chart.name}") for chart in charts
    )
    needs = tag("noscript", tag("p", "The curves need JavaScript."))
    return joined([CONTROLS, needs, tag("div", figures, class_="charts")])


def _samples(samples: Sequence[list[happenings.Line]], names: Sequence[str]) -> list[Markup]:
    part = happenings.samples_part(samples, names)
    return [] if part is None else [section("Samples", part)]


def _tables(records: Sequence[RunRecord], names: Sequence[str]) -> list[Markup]:
    """What stands below charts and samples, as far as the runs tell of it."""
    several = len(records) > 1
    differ = "Settings that differ" if several else "Settings unlike the default"
    found = [
        (differ, sections.settings_that_differ(records, names)),
        (
            "Losses after equally many tokens",
            sections.at_equal_tokens(records, names) if several else None,
        ),
        ("Where the time went", sections.shares_of_time(records, names)),
        ("Checkpoints", happenings.checkpoints_table(records, names)),
        ("Environment", sections.environment(records, names)),
        ("Events", happenings.events_table(records, names)),
    ]
    return [section(title, part) for title, part in found if part is not None]
