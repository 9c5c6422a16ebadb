"""A run's events: appended, read back, and never in the way."""

import json
import time
from pathlib import Path

import pytest

from nanogpt_dist.storage.events import EVENTS, note_event
from tests.nanogpt_dist.small import events_of


def test_events_are_read_in_order_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    note_event(tmp_path, "start", 0, world_size=2)
    note_event(tmp_path, "save", 100, seconds=0.5)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'[1]\n{"time": 1, "event": "sa')
    events = events_of(tmp_path)
    assert [(event["event"], event["step"]) for event in events] == [("start", 0), ("save", 100)]
    assert events[1]["seconds"] == 0.5
    assert events[0]["time"] <= events[1]["time"]


def test_an_event_after_a_torn_line_is_read(tmp_path: Path) -> None:
    note_event(tmp_path, "start", 0)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time": 1, "event": "sa')
    note_event(tmp_path, "stop", 7)
    note_event(tmp_path, "done", 8)
    assert [event["event"] for event in events_of(tmp_path)] == ["start", "stop", "done"]
    assert b"\n\n" not in (tmp_path / EVENTS).read_bytes()


def test_a_number_that_json_does_not_have_becomes_null(tmp_path: Path) -> None:
    note_event(tmp_path, "skip", 7, norm=float("nan"))
    assert json.loads((tmp_path / EVENTS).read_text())["norm"] is None


def test_the_time_is_told_in_milliseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1764450000.12345)
    note_event(tmp_path, "start", 0)
    [event] = events_of(tmp_path)
    assert event["time"] == 1764450000.123


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    note_event(tmp_path / "gone", "save", 1)
    assert events_of(tmp_path / "gone") == []
