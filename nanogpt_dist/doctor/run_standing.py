"""How a run stands: who is in it, how it ended, and how often it was started in vain."""

import contextlib
import itertools
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.run_facts import Line, RunFacts, count, number, word
from nanogpt_dist.errors import ConfigError, Exit
from nanogpt_dist.storage.events import EVENTS
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.metrics import RECORD, duration

SILENT_S = 600  # seconds without a line, at least, before a living run is called silent
SILENT = 10  # times the longest that it was silent before


def check_standing(facts: RunFacts) -> list[Check]:
    """Verdict, lock, attempts and clock of a run."""
    return [_verdict(facts), *_attempts(facts), *_clock(facts)]


def check_beginning(facts: RunFacts) -> Check:
    """Of a run that has not come to its first step, so that there is nothing to go on with."""
    if facts.held:
        return Check("run", "ok", "starting: nothing is trained yet")
    why = word(facts.status, "message").partition("; ")[0]
    text = f"nothing was trained: it ended before its first step{f', {why}' if why else ''}"
    folder = shlex.join(["rm", "-r", str(facts.path)])
    todo = f"the command that began it, once more; or {folder}"
    if not facts.is_here:  # its lock is not seen from here
        todo = f"{_look_at(facts)}; if it is gone: {todo}"
    return Check("run", "warning", text, todo)


def _verdict(facts: RunFacts) -> Check:
    if facts.held:
        return _alive(facts)
    told = {
        "done": _done,
        "stopped": _stopped,
        "failed": _failed,
        "killed": _killed,
        "running": _elsewhere,
    }
    return told.get(facts.verdict or "", _unknown)(facts)


def _done(facts: RunFacts) -> Check:
    return Check("run", "ok", f"done, {_steps(facts)}")


def _stopped(facts: RunFacts) -> Check:
    saved = " and saved" if facts.status.get("checkpoint") else ""
    return Check("run", "ok", f"stopped{saved}, {_steps(facts)}")


def _failed(facts: RunFacts) -> Check:
    """What status.json says; what to type stands behind the last semicolon of an error line."""
    what, _, advice = (word(facts.status, "message") or "no message").rpartition("; ")
    told = count(facts.status, "code") or Exit.BUG
    code = next((exit for exit in Exit if exit == told and exit != Exit.DONE), Exit.BUG)
    todo = f"{advice}; then {facts.resume_line()}" if what else facts.resume_line()
    return Check(
        "run", "error", f"failed, {_steps(facts)}, exit code {told}: {what or advice}", todo, code
    )


def _elsewhere(facts: RunFacts) -> Check:
    """status.json says running on another machine, whose lock is not seen from here."""
    silent = duration(_silent_s(facts) or 0.0)
    text = f"running on {facts.host}, {_steps(facts)}, last line {silent} ago"
    return Check("run", "ok", text)


def _killed(facts: RunFacts) -> Check:
    """status.json says running, and nobody seen from here holds the lock."""
    where = f" on {facts.host}" if facts.host else ""
    pid = f"process {facts.pid}{where}" if facts.pid is not None else f"the process{where}"
    if facts.is_here:
        text = (
            f"killed, {_steps(facts)}: {pid} ended without a word (kill -9, lack of memory, power)"
        )
        return Check("run", "warning", text, facts.resume_line())
    silent = duration(_silent_s(facts) or 0.0)
    text = f"killed, it seems, {_steps(facts)}: {pid} has logged nothing for {silent}"
    return Check("run", "warning", text, f"{_look_at(facts)}; if it is gone: {facts.resume_line()}")


def _look_at(facts: RunFacts) -> str:
    """The command that shows the process of the run, and changes nothing."""
    away = [] if facts.is_here else ["ssh", facts.host]
    if facts.pid is not None:
        return shlex.join([*away, "ps", "-o", "user,pid,stat,etime,args", "-p", str(facts.pid)])
    if away:
        return shlex.join([*away, "pgrep", "-af", "nanogpt"])
    return shlex.join(["fuser", "-v", str(facts.path / storage.LOCK)])


def _unknown(facts: RunFacts) -> Check:
    if "status.json" in facts.wrong:
        return Check(
            "run",
            "error",
            f"status.json cannot be used: {facts.wrong['status.json']}",
            f"{shlex.join(['rm', str(facts.path / 'status.json')])}; then {facts.train_line()}",
            Exit.BAD_DATA,
        )
    return Check(
        "run", "warning", f"nothing says how it ended, {_steps(facts)}", facts.resume_line()
    )


def _alive(facts: RunFacts) -> Check:
    holder = f"process {facts.pid} on {facts.host}" if facts.host and facts.pid else "a process"
    text = f"running, {_steps(facts)}: {holder} holds {storage.LOCK}"
    holders = holders_of(facts.path / storage.LOCK) if facts.is_here else []
    if facts.is_here and facts.pid is not None and _is_gone(facts.pid, holders):
        return _left_behind(facts, holder, holders)
    silent, usual = _silent_s(facts), _usual_silence_s(facts)
    if silent is not None and usual is not None and silent > max(SILENT_S, SILENT * usual):
        hangs = facts.pid in holders
        then = f"if it hangs: kill {facts.pid}; then" if hangs else "if it is gone:"
        return Check(
            "run",
            "warning",
            f"{text}, and has logged nothing for {duration(silent)}, before never for more than "
            f"{duration(usual)}",
            f"{_look_at(facts)}; {then} {facts.train_line()}",
        )
    return Check("run", "ok", text)


def _left_behind(facts: RunFacts, holder: str, holders: list[int]) -> Check:
    """The lock is held, and not by the process that its note names."""
    lock = facts.path / storage.LOCK
    if not holders:  # of a container, or another user's
        text = f"{holder} is not seen from here, and {storage.LOCK} is held"
        return Check("run", "warning", text, shlex.join(["fuser", "-v", str(lock)]))
    others = ", ".join(map(str, holders))
    look = f"ps -o user,pid,etime,args -p {','.join(map(str, holders))}"
    return Check(
        "run",
        "error",
        f"{holder} is dead, but {storage.LOCK} is still held by {others}: no other run can start "
        "here",
        f"{look}; if it is left over: kill {' '.join(map(str, holders))}",
        Exit.CANNOT_CREATE,
    )


def _is_gone(pid: int, holders: list[int]) -> bool:
    """Whether the process that took the lock as `pid` is not there; false where nobody can tell."""
    if not Path("/proc/self").exists():
        return False
    if any(_number_inside(each) == pid for each in holders):  # a container's, by its own number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False


def _number_inside(pid: int) -> int | None:
    """What a process is called in the container that it runs in; `pid` outside of all."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def holders_of(lock: Path) -> list[int]:
    """Processes that hold the flock on the file `lock`, where we may look.

    One that has the file open alone, to read it, is none. Source: proc_pid_fdinfo(5), `lock:`.
    """
    try:
        mine = lock.stat()
    except OSError:
        return []
    return sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _holds(entry, mine))


def _holds(entry: Path, lock: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for fd in (entry / "fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed
                if os.path.samestat(lock, fd.stat()):
                    info = (entry / "fdinfo" / fd.name).read_text()
                    if re.search(r"^lock:.*\bFLOCK\b", info, re.MULTILINE):
                        return True
    return False


def _steps(facts: RunFacts) -> str:
    of = f" of {facts.config.max_iters:,}" if facts.config else ""
    return f"step {facts.step:,}{of}"


def _silent_s(facts: RunFacts) -> float | None:
    """Seconds since the last line of metrics.jsonl, by the file system's clock."""
    try:
        return max(0.0, time.time() - (facts.path / RECORD).stat().st_mtime)
    except OSError:
        return None


def _usual_silence_s(facts: RunFacts) -> float | None:
    """The longest time between two lines; None where they do not tell the time."""
    pauses = [later - before for before, later in itertools.pairwise(_times(facts.train))]
    return max([pause for pause in pauses if pause >= 0], default=None)


def _times(lines: Sequence[Line]) -> list[float]:
    """When they were written, in their order; [] for an older run, whose lines do not tell."""
    return [at for line in lines if (at := number(line, "time")) is not None]


def _attempts(facts: RunFacts) -> list[Check]:
    """Starts in a row that left no checkpoint, as crash_loops counts them."""
    if facts.config is None or facts.held or facts.verdict in ("done", "stopped"):
        return []
    newest = storage.step_at(facts.steps[0]) if facts.steps else 0
    settings = crash_loops.digest(facts.config, facts.ranks)
    in_vain = crash_loops.starts_in_vain(facts.path, newest, settings)
    if in_vain < 2:
        return []
    text = f"{in_vain} starts in a row left no checkpoint after step {newest:,}"
    sooner = max(1, (facts.step - newest) // 2)
    todo = facts.train_line("--save-interval", sooner)
    try:
        back = crash_loops.steps_back(facts.path, newest, settings)
    except ConfigError:
        attempts = shlex.join(["rm", str(facts.path / crash_loops.ATTEMPTS)])
        refused = f"{text}; the next start will be refused"
        return [Check("attempts", "error", refused, f"{attempts}; then {todo}", Exit.CONFIG)]
    if back:
        text += "; the next one goes one checkpoint further back"
    return [Check("attempts", "warning", text, todo)]


def _clock(facts: RunFacts) -> list[Check]:
    """Times that go backwards: rates, ETA and the order of TensorBoard's files are wrong then."""
    for name, lines in ((RECORD, facts.train), (EVENTS, facts.record.events)):
        for before, later in itertools.pairwise(_times(lines)):
            if later < before - 1:
                return [
                    Check(
                        "clock",
                        "warning",
                        f"{name}: the clock{f' of {facts.host}' if facts.host else ''} went "
                        f"{duration(before - later)} back between two lines",
                        "timedatectl set-ntp true",
                    )
                ]
    return []
