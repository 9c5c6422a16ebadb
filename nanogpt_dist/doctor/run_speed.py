"""Throughput of a run over time: slower than it was, slow ranks, waits for data, slow saves.

What an interval between two log lines went on stands in metrics.jsonl as interval_s, data_s,
save_s, eval_s, slowest_rank, slowest_host, slowest_factor and expected_tokens_per_second; an older
run has tokens_per_second alone.
"""

import shlex
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist.doctor.check import Check, as_notes
from nanogpt_dist.doctor.run_facts import HOST, Line, RunFacts, count, number, word

FEWEST = 10  # lines before and after, to call a run slower than it was
SLOWER = 0.8  # of the speed before
BELOW_PLAN = 0.7  # of the expected speed
DATA_SHARE = 0.1  # of the time, spent on waiting for batches
SAVE_SHARE = 0.1
EVAL_SHARE = 0.3
STRAGGLER = 1.2  # times the median rank's work
OFTEN = 0.5  # of the lines that name a slowest rank name the same one
SLOW_SAVE = 3.0  # times the median save


def check_speed(facts: RunFacts) -> list[Check]:
    """What slows the run, or one Check with its speed; of a finished run as notes."""
    found = [
        *_slower(facts),
        *_below_plan(facts),
        *_straggler(facts),
        *_shares(facts),
        *_saves(facts),
    ]
    if found:
        return as_notes(found) if facts.is_finished else found
    speeds = _speeds(facts.train)
    text = f"{np.median(speeds):,.0f} tokens/s" if len(speeds) else "not measured yet"
    return [Check("speed", "ok", text)]


def _speeds(lines: list[Line]) -> NDArray[np.float64]:
    known = [number(line, "tokens_per_second") for line in lines]
    return np.array([speed for speed in known if speed is not None and speed > 0])


def _timed(facts: RunFacts) -> list[Line]:
    """The lines with a speed that can be compared: of the last piece of a ramp."""
    lines = [line for line in facts.train if (number(line, "tokens_per_second") or 0) > 0]
    if facts.config is None or not lines:
        return lines
    ramp = facts.config.ramp
    last = ramp.at(max(0, lines[-1]["step"] - 1))
    return [line for line in lines if line["step"] - 1 >= last.first]


def _slower(facts: RunFacts) -> list[Check]:
    """The last lines against those before: the medians, beyond what the lines vary by."""
    lines = _timed(facts)
    if len(lines) < 2 * FEWEST:
        return []
    speeds = _speeds(lines)
    recent = max(FEWEST, len(speeds) // 4)
    before, now = float(np.median(speeds[:-recent])), float(np.median(speeds[-recent:]))
    usual = float(np.quantile(speeds[:-recent], 0.1))
    if now > SLOWER * before or now > usual:
        return []
    since = lines[-recent]["step"]
    return [
        Check(
            "speed",
            "warning",
            f"slower than it was: {now:,.0f} tokens/s since step {since:,}, {before:,.0f} before",
            _doctor_on("" if facts.is_here else facts.host),
        )
    ]


def _below_plan(facts: RunFacts) -> list[Check]:
    lines = [line for line in _timed(facts) if number(line, "expected_tokens_per_second")]
    if len(lines) < FEWEST:
        return []
    expected = number(lines[-1], "expected_tokens_per_second") or 0.0
    now = float(np.median(_speeds(lines)))
    if now >= BELOW_PLAN * expected:
        return []
    return [
        Check(
            "speed",
            "warning",
            f"{now:,.0f} tokens/s, planned were {expected:,.0f}",
            shlex.join(["nanogpt", "bench", "train", str(facts.path)]),
        )
    ]


def _straggler(facts: RunFacts) -> list[Check]:
    """A rank that the others wait for, and where it is."""
    lines = [line for line in facts.train if number(line, "slowest_factor") is not None]
    slow = [line for line in lines if (number(line, "slowest_factor") or 0) >= STRAGGLER]
    named = Counter((count(line, "slowest_rank"), word(line, "slowest_host")) for line in slow)
    if len(lines) < FEWEST or not named:
        return []
    (rank, host), times = named.most_common(1)[0]
    if times < OFTEN * len(lines):
        return []
    factors = [
        number(line, "slowest_factor") or 0.0
        for line in slow
        if count(line, "slowest_rank") == rank
    ]
    at = f" on {host}" if host else ""
    return [
        Check(
            "ranks",
            "warning",
            f"rank {rank}{at} is the slowest in {times} of {len(lines)} lines, "
            f"{np.median(factors):.1f} × the median rank",
            _doctor_on(host),
        )
    ]


def _doctor_on(host: str) -> str:
    """What says who else uses that machine, or this one; a name from a file is not trusted."""
    return f"ssh {host} nanogpt doctor" if HOST.fullmatch(host) else "nanogpt doctor"


def _shares(facts: RunFacts) -> list[Check]:
    """Of the wall time of all intervals: waiting for data, saving, evaluating."""
    lines = [line for line in facts.train if (number(line, "interval_s") or 0) > 0]
    wall = sum(number(line, "interval_s") or 0.0 for line in lines)
    if len(lines) < FEWEST or not wall:
        return []
    found = []
    for key, name, share, what, todo in (
        (
            *("data_s", "data", DATA_SHARE, "waiting for batches"),
            shlex.join(["nanogpt", "bench", "data", str(facts.path)]),
        ),
        (
            *("save_s", "saves", SAVE_SHARE, "saving"),
            facts.change_line(*_rarer(facts, "save_interval")),
        ),
        (
            *("eval_s", "evaluations", EVAL_SHARE, "evaluating"),
            facts.change_line(*_rarer(facts, "eval_interval")),
        ),
    ):
        took = sum(max(0.0, number(line, key) or 0.0) for line in lines)
        if took > share * wall:
            text = f"{min(1.0, took / wall):.0%} of the time goes on {what}"
            found.append(Check(name, "warning", text, todo))
    return found


def _rarer(facts: RunFacts, name: str) -> tuple[str, int]:
    """A flag that does it four times as rarely."""
    config = facts.config
    now = (getattr(config, name) or config.eval_interval) if config else 1000
    return f"--{name.replace('_', '-')}", 4 * now


def _saves(facts: RunFacts) -> list[Check]:
    """Saves whose time has grown, as on a disk that fills or a shared file system in use."""
    took = [
        seconds
        for event in facts.record.events
        if event.get("event") == "save" and (seconds := number(event, "seconds")) is not None
    ]
    if len(took) < 4:
        return []
    usual, last = float(np.median(took[:-1])), took[-1]
    if last < SLOW_SAVE * usual or last - usual < 1:
        return []
    return [
        Check(
            "saves",
            "warning",
            f"the last save took {last:.1f} s, {usual:.1f} s were usual",
            shlex.join(
                ["nanogpt", "bench", "io", str(facts.path), "--folder", str(facts.path.parent)]
            ),
        )
    ]
