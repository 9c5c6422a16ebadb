"""Where a run stands, of records made by hand: the last attempt's figures alone."""

from pathlib import Path
from typing import Any

from nanogpt_dist.inspect.run_record import RunRecord
from nanogpt_dist.inspect.standing import standing


def stands(train: list[dict[str, Any]], events: list[dict[str, Any]]) -> dict[str, Any]:
    lines = tuple({"loss": 1.0, **line} for line in train)
    told = tuple({"time": 0.0, **event} for event in events)
    return standing(RunRecord(Path("a"), None, "", {}, {}, "running", lines, (), told), 0.0)


def test_the_last_attempt_counts_also_where_it_began_earlier_than_one_before() -> None:
    lines = [{"step": step, "tokens_per_second": 10.0 * step} for step in (21, 22, 23)]
    events = [
        {"event": "start", "step": 0},
        {"event": "resume", "step": 40},
        {"event": "resume", "step": 20},
    ]
    assert stands(lines, events)["tokens_per_second"] == 220
    assert stands(lines, events[:2])["tokens_per_second"] is None


def test_a_straggler_is_told_of_while_the_newest_lines_name_it() -> None:
    events = [
        {"event": "start", "step": 0},
        {"event": "straggler", "step": 10, "rank": 3, "host": "node-7", "factor": 1.8},
    ]
    slow = {"slowest_rank": 3, "slowest_factor": 1.8}
    even = {"slowest_rank": 1, "slowest_factor": 1.02}

    def told(*lines: dict[str, Any]) -> bool:
        after = [{"step": 10 + i, **line} for i, line in enumerate(lines)]
        return stands(after, events)["straggler"] is not None

    assert told()
    assert told(slow, slow)
    assert told(slow, even, even)
    assert not told(slow, even, even, even)
    assert not told(slow, *[{"slowest_rank": 1, "slowest_factor": 1.8}] * 3)
    assert told({}), "lines that do not tell"
