"""What happened to a run: events, checkpoints, samples. No torch."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.html_report.curves import Axes
from nanogpt_dist.html_report.markup import MISSING, Markup, joined, number, size, table, tag
from nanogpt_dist.inspect.run_record import RunRecord, is_number, is_step
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.events import EVENTS

Line = dict[str, Any]
USUAL = ("start", "save")  # as a run wants them: they yield where there are too many events
MOST_EVENTS = 200
MOST_STEPS, MOST_PROMPTS, LONGEST_TEXT = 30, 8, 2000  # of samples; text in characters
COMMON = ("time", "event", "step")


def when(unix: Any) -> str:
    """A time in UTC."""
    with contextlib.suppress(OverflowError, OSError, ValueError, TypeError):
        return datetime.fromtimestamp(float(unix), UTC).strftime("%Y-%m-%d %H:%M:%S")
    return MISSING


def events_to_show(record: RunRecord) -> tuple[list[Line], int]:
    """The events to show, the oldest first, and how many are left out: usual ones before others."""
    events = [event for event in record.events if is_number(event["step"])]
    newest = list(enumerate(events))[::-1]
    ordered = sorted(newest, key=lambda pair: pair[1]["event"] in USUAL)[:MOST_EVENTS]
    return [event for _, event in sorted(ordered, key=lambda pair: pair[0])], len(events) - len(
        ordered
    )


def events_table(records: Sequence[RunRecord], names: Sequence[str]) -> Markup | None:
    """A list of what happened; None where nothing is noted."""
    rows: list[list[object]] = []
    left_out = 0
    for record, name in zip(records, names, strict=True):
        events, more = events_to_show(record)
        left_out += more
        for event in events:
            kind = tag("span", event["event"], class_=f"event {_kind(event)}")
            row = [when(event["time"]), kind, int(event["step"]), _details(event)]
            rows.append([name, *row] if len(records) > 1 else row)
    if not rows:
        return None
    header = ["time (UTC)", "event", "step", "more"]
    shown = table(["run", *header] if len(records) > 1 else header, rows, "events")
    if not left_out:
        return shown
    note = tag("p", f"{left_out:,} earlier starts and saves stand in {EVENTS} alone.")
    return joined([shown, note])


def _kind(event: Line) -> str:
    """The class of an event, by which it has its colour."""
    kind = event["event"]
    if kind in (*USUAL, "resume", "done"):
        return str(kind)
    return "stop" if kind == "stop" else "trouble"


def _details(event: Line) -> str:
    told = []
    for key, value in event.items():
        if key in COMMON or value is None or value == "":
            continue
        if key == "bytes" and is_number(value):
            told.append(size(value))
        elif key == "seconds" and is_number(value):
            told.append(f"{value:.3g} s")
        else:
            shown = number(value) if is_number(value) else str(value)
            told.append(
                shown if key in ("message", "reason") else f"{key.replace('_', ' ')} {shown}"
            )
    return " · ".join(told)


def marks(record: RunRecord, axes: Axes) -> list[Line]:
    """The events as marks on the charts: {event, kind, text, places on the axes}."""
    events, _ = events_to_show(record)
    places = axes.at([int(event["step"]) for event in events])
    return [
        {
            "event": str(event["event"]),
            "kind": _kind(event),
            "text": _details(event)[:200],
            **{axis: where[i] for axis, where in places.items()},
        }
        for i, event in enumerate(events)
    ]


def checkpoints_table(records: Sequence[RunRecord], names: Sequence[str]) -> Markup | None:
    """The checkpoints, newest first, by their names, sizes and state.json; None: there is none."""
    rows: list[list[object]] = []
    for record, name in zip(records, names, strict=True):
        states = {path: _state(path) for path in record.checkpoints}
        best = next((step for each in states.values() if (step := each.get("best_step"))), None)
        pins: set[str] = set()
        with contextlib.suppress(NanogptError):
            pins = storage.read_pins(run_folder.checkpoints_of(record.folder))
        for path, state in states.items():
            told = ["best"] * (storage.step_at(path) == best) + ["pinned"] * (path.name in pins)
            loss = state.get("val_loss")
            shown = f"{loss:.4f}" if is_number(loss) else None
            row: list[object] = [path.name, shown, size(_bytes(path)), ", ".join(told)]
            rows.append([name, *row] if len(records) > 1 else row)
    header = ["checkpoint", "val loss", "size", ""]
    return table(["run", *header] if len(records) > 1 else header, rows) if rows else None


def _state(checkpoint: Path) -> Line:
    with contextlib.suppress(NanogptError):
        return run_folder.read_json(checkpoint / "state.json")
    return {}


def _bytes(checkpoint: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.lstat().st_size for path in checkpoint.iterdir())
    return 0


def samples_data(record: RunRecord) -> list[Line]:
    """{step, prompt, text} of the samples to show: of steps that are spread over the run."""
    lines = [
        line
        for line in record.samples
        if is_step(line.get("step")) and isinstance(line.get("text"), str)
    ]
    steps = sorted({int(line["step"]) for line in lines})
    if len(steps) > MOST_STEPS:
        last = len(steps) - 1
        steps = [steps[i * last // (MOST_STEPS - 1)] for i in range(MOST_STEPS)]
    wanted = set(steps)
    prompts = list(dict.fromkeys(str(line.get("prompt", "")) for line in lines))[:MOST_PROMPTS]
    found = {
        (int(line["step"]), str(line.get("prompt", ""))): line["text"][:LONGEST_TEXT]
        for line in lines
    }
    return [
        {"step": step, "prompt": prompt, "text": text}
        for (step, prompt), text in sorted(found.items(), key=lambda pair: pair[0][0])
        if step in wanted and prompt in prompts
    ]


def samples_part(samples: Sequence[list[Line]], names: Sequence[str]) -> Markup | None:
    """The newest sample after each prompt; report.js puts those of another step in their place."""
    prompts = list(dict.fromkeys(each["prompt"] for run in samples for each in run))
    if not prompts:
        return None
    cards = []
    for number_of_prompt, prompt in enumerate(prompts):
        rows: list[object] = [tag("h3", tag("q", prompt) if prompt else "without a prompt")]
        for run, name in enumerate(names):
            own = [each for each in samples[run] if each["prompt"] == prompt]
            if not own:
                continue
            about = tag("span", name, class_=f"key c{run % 8}") if len(names) > 1 else ""
            text = tag("span", own[-1]["text"], class_="text")
            said = joined([tag("span", prompt, class_="prompt"), text])
            step = tag("span", f"step {own[-1]['step']:,}", class_="step")
            attributes = {"data-run": run, "data-prompt": number_of_prompt, "class": "sample"}
            inner = joined([tag("p", joined([about, " ", step])), tag("pre", said)])
            rows.append(tag("div", inner, **attributes))
        cards.append(tag("article", joined(rows)))
    slider = Markup(
        '<label class="controls" id="when" hidden>step <input type="range" min="0" '
        'aria-label="step of the samples"><output></output></label>'
    )
    return joined([slider, tag("div", joined(cards), class_="cards")])
