"""What a resume of a run would do: its checkpoints, their disk, its data set."""

import contextlib
import os
import shlex
import time
from pathlib import Path

from nanogpt_dist import __version__, storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve, settings_where
from nanogpt_dist.data import DataFolder
from nanogpt_dist.doctor.check import Check, Level
from nanogpt_dist.doctor.run_facts import RunFacts, count, word
from nanogpt_dist.errors import ConfigError, Exit, NanogptError
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.run_folder import CONFIG, checkpoints_of
from nanogpt_dist.storage.steps import LEFTOVER
from nanogpt_dist.training import crash_loops

GB = 10**9
DEBRIS_S = 3600  # without a change, from which on a half-written checkpoint is a killed save's


def check_resume(facts: RunFacts) -> list[Check]:
    """Settings, checkpoints, disk and data of a run, and the step from which it would go on."""
    checkpoints, good = _checkpoints(facts)
    data = _data(facts)
    refused = any(check.level == "error" for check in checkpoints)
    refused |= facts.is_here and any(check.level != "ok" for check in data)
    return [
        *_config(facts),
        *checkpoints,
        *_disk(facts),
        *data,
        *_resume(facts, good, refused),
    ]


def _config(facts: RunFacts) -> list[Check]:
    error = facts.wrong.get(CONFIG)
    if error is None:
        return []
    kept = next((path / CONFIG for path in facts.steps if (path / CONFIG).is_file()), None)
    todo = (
        shlex.join(["cp", str(kept), str(facts.path / CONFIG)])
        if kept is not None and _can_read(kept)
        else "nanogpt show config > FILE.toml, and write its settings anew"
    )
    version = word(facts.record.about, "version")
    if version and version != __version__:
        todo = f"pip install nanogpt-dist=={version}, which wrote it; or {todo}"
    return [Check("settings", "error", f"{CONFIG} cannot be used: {error}", todo, error.code)]


def _can_read(config: Path) -> bool:
    try:
        resolve(read_toml(config))
    except NanogptError:
        return False
    return True


def _checkpoints(facts: RunFacts) -> tuple[list[Check], Path | None]:
    """Whether the newest and the best verify, byte by byte; and the newest good one."""
    if "checkpoints" in facts.wrong:
        error = facts.wrong["checkpoints"]
        todo = shlex.join(["ls", "-ld", str(checkpoints_of(facts.path))])
        return [Check("checkpoints", "error", str(error), todo, error.code)], None
    if not facts.steps:
        return _no_checkpoint(facts), None
    found, good, steps = _newest_good(facts)
    if good is None and not found:
        return _no_checkpoint(facts), None
    if good is None:
        last = found[-1]
        todo = f"restore a backup, or start over: {facts.fresh_line('again')}"
        text = f"all {len(found)} are damaged ({last.text}): a resume is refused"
        return [Check("checkpoints", "error", text, todo, last.code)], None
    best = count(facts.state, "best_step")
    if best is not None and best < storage.step_at(good):  # newer ones were looked at above
        found += _best(facts, checkpoints_of(facts.path) / storage.step_name(best))
    if not found:
        size = _size(good) / 1e6
        text = f"{good.name} is good, {size:,.1f} MB; {len(steps)} kept"
        return [Check("checkpoints", "ok", text)], good
    return found, good


def _newest_good(facts: RunFacts) -> tuple[list[Check], Path | None, tuple[Path, ...]]:
    """The damaged ones that are newer, the newest good one, and all that there are.

    A living run may delete one while it is read, and save another: then they are looked at anew.
    """
    steps = facts.steps
    while True:
        found: list[Check] = []
        for folder in steps:
            check = _verified(facts, folder)
            if check is None:
                return found, folder, steps
            if not os.path.lexists(folder):
                break
            found.append(check)
        else:
            return found, None, steps
        before, steps = steps, _listed(facts)
        if steps == before:
            return found, None, steps


def _listed(facts: RunFacts) -> tuple[Path, ...]:
    """The checkpoints that there are now."""
    try:
        return tuple(storage.list_steps(checkpoints_of(facts.path)))
    except NanogptError:
        return facts.steps


def _no_checkpoint(facts: RunFacts) -> list[Check]:
    if not facts.lost:
        return [Check("checkpoints", "ok", "none yet")]
    text = f"{facts.lost[:40]} and all others are gone: a resume is refused"
    return [Check("checkpoints", "error", text, facts.resume_line(), Exit.MISSING_INPUT)]


def _verified(facts: RunFacts, folder: Path) -> Check | None:
    """None where every byte is as sealed."""
    try:
        problems = storage.verify(folder)
    except storage.NewerFormatError as error:
        what, _, todo = str(error).rpartition("; ")
        return Check("checkpoints", "error", what, todo, error.code)
    except NanogptError as error:
        what, _, todo = str(error).rpartition("; ")
        return Check("checkpoints", "error", what or todo, todo, error.code)
    if not problems:
        return None
    name, reason = problems[0]
    return Check(
        "checkpoints",
        "warning",
        f"{folder.name} is damaged: {name[:40]} {reason}; a resume takes the one before",
        facts.change_line(),
        Exit.BAD_DATA,
    )


def _best(facts: RunFacts, best: Path) -> list[Check]:
    damaged = _verified(facts, best)
    if not best.is_dir():
        if _listed(facts) != facts.steps:  # the run went on, and has another best
            return []
        text = f"the best one, {best.name}, is gone"
        if facts.is_finished:  # another best one comes with another evaluation alone
            newest = shlex.join(["nanogpt", "eval", str(facts.path)])
            return [Check("checkpoints", "warning", f"{text}: leave --best out", newest)]
        return [Check("checkpoints", "warning", text, facts.change_line())]
    if damaged is None:
        return []
    text = f"the best one, {best.name}, is damaged"
    todo = shlex.join(["mv", str(best), str(best.with_name(f".bad-{best.name}-1"))])
    return [Check("checkpoints", "warning", text, todo)]


def _size(folder: Path) -> int:
    """Bytes of all files in `folder`, links not followed; what cannot be read is left out."""
    total = 0
    for place, _, names in os.walk(folder):  # what a living run deletes meanwhile is left out
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _disk(facts: RunFacts) -> list[Check]:
    """What the run takes, what dead saves left, and whether the next saves have room."""
    folder = checkpoints_of(facts.path)
    found = _debris(facts, folder)
    try:
        used, free = _size(facts.path), storage.free_bytes(folder)
    except OSError as error:
        return [*found, Check("disk", "warning", f"{error}", f"df {shlex.quote(str(folder))}")]
    if facts.steps and facts.config is not None and facts.verdict != "done":
        size = max(_size(path) for path in facts.steps)
        # the next is written before the oldest goes
        count_ = max(1, facts.config.keep_checkpoints + 1 - len(facts.steps))
        if free < size * count_:
            text = (
                f"{free / GB:,.2f} GB free at {folder}, the next {count_} saves take "
                f"{size * count_ / GB:,.2f} GB"
            )
            todo = shlex.join(["df", "-h", str(folder)]) + "  # or --out-dir on another disk"
            if not facts.held and len(facts.steps) > 1:  # else it is refused, or frees nothing
                prune = ["nanogpt", "checkpoint", "prune", str(facts.path), "--keep", "1"]
                todo = shlex.join([*prune, "--dry-run"])
            level: Level = "error" if free < size else "warning"
            return [*found, Check("disk", level, text, todo, Exit.IO_ERROR)]
    return found or [Check("disk", "ok", f"{used / 1e6:,.1f} MB, {free / GB:,.1f} GB free")]


def _debris(facts: RunFacts, folder: Path) -> list[Check]:
    """Half-written checkpoints, and damaged ones that were set aside.

    Those of a living run are being written: of one elsewhere, whose lock is not seen from here,
    nothing is said before its end is known.
    """
    ended = facts.is_here or facts.verdict in ("done", "failed", "stopped")
    if facts.held or not ended or not folder.is_dir():
        return []
    hidden = sorted(path for path in folder.glob(".*") if path.is_dir())
    left = [path for path in hidden if LEFTOVER.fullmatch(path.name) and _is_old(path)]
    bad = [path for path in hidden if path.name.startswith(".bad-")]
    found = []
    for paths, what in ((left, "of killed saves"), (bad, "set aside as damaged")):
        if paths:
            size = sum(map(_size, paths)) / 1e6
            text = f"{len(paths)} folder{'s' * (len(paths) > 1)} {what}, {size:,.1f} MB"
            todo = shlex.join(["rm", "-rf", *map(str, paths)])
            if paths is left and facts.verdict != "done":
                todo, text = facts.train_line(), f"{text}: the next start removes them"
            found.append(Check("disk", "warning", text, todo))
    return found


def _is_old(folder: Path) -> bool:
    """Whether nothing in it was written for an hour: a save may take long."""
    times = [0.0]
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            with contextlib.suppress(OSError):
                times.append(os.lstat(path).st_mtime)
    return time.time() - max(times) > DEBRIS_S


def _data(facts: RunFacts) -> list[Check]:
    """Whether the data set is there, whole by its sizes, and that of the newest checkpoint."""
    if facts.config is None:
        return []
    place = Path(run_folder.dataset_of(facts.path, facts.config.dataset))
    elsewhere = ("--dataset", "DIR")
    other = facts.change_line(*elsewhere)
    if facts.is_finished:
        other = shlex.join(["nanogpt", "eval", str(facts.path), *elsewhere])
    # a finished run needs its data no more; another machine may have them
    level: Level = "error" if facts.is_here and facts.verdict != "done" else "warning"
    try:
        data = DataFolder.open(place)
    except NanogptError as error:
        what, _, advice = str(error).rpartition("; ")
        todo = f"{advice}; or {other}" if what else other
        return [Check("data", level, what or str(error), todo, error.code)]
    was = word(facts.state, "dataset_id")
    if was and was != data.dataset_id:
        text = f"trained on data set {was[:12]}, {place} is {data.dataset_id[:12]}"
        return [Check("data", level, text, other, Exit.BAD_DATA)]
    tokens = data.split("train").tokens
    return [Check("data", "ok", f"{place}, {tokens:,} tokens, as the checkpoint has it")]


def _resume(facts: RunFacts, good: Path | None, refused: bool) -> list[Check]:
    """From which step it would go on, and what is computed again; [] where that is `refused`."""
    if facts.config is None:
        return []
    changed = _refused(facts, good)
    if changed and good is not None:
        todo = shlex.join(["cp", str(good / CONFIG), str(facts.path / CONFIG)])
        text = f"refused: {CONFIG} has {', '.join(changed[:3])}"
        return [Check("resume", "error", text, todo, Exit.CONFIG)]
    if refused:
        return []
    try:
        start = _start(facts, facts.config, good)
    except ConfigError:  # started in vain too often
        return []
    step = storage.step_at(start) if start is not None else 0
    lost = max(0, facts.step - step)
    from_ = f"from {start.name}" if start is not None else "from step 0"
    again = f", {lost:,} steps are computed again" if lost else ""
    if facts.verdict == "done" and step >= facts.config.max_iters:
        more = facts.train_line("--max-iters", 2 * facts.config.max_iters)
        return [Check("resume", "ok", f"none is due; longer: {more}")]
    if facts.held:
        return [Check("resume", "ok", f"would go on {from_}{again}, were it stopped now")]
    return [Check("resume", "ok", f"{facts.train_line()} goes on {from_}{again}")]


def _start(facts: RunFacts, config: TrainConfig, good: Path | None) -> Path | None:
    """`good`, or the one before it where starts from there were in vain.

    Raises ConfigError where those from the one before were in vain, too.
    """
    step = storage.step_at(good) if good is not None else 0
    back = crash_loops.steps_back(facts.path, step, crash_loops.digest(config, facts.ranks))
    return run_checkpoints.good_before(good) if back and good is not None else good


def _refused(facts: RunFacts, good: Path | None) -> list[str]:
    """Settings of the run that the checkpoint refuses, as "name OLD (now NEW)"."""
    if good is None or facts.config is None:
        return []
    try:
        saved = resolve(read_toml(good / CONFIG))
    except NanogptError:
        return []
    names = [*settings_where(on_resume="refuse"), "global_batch_size"]
    both = {name: (getattr(saved, name), getattr(facts.config, name)) for name in names}
    return [f"{name} {old} (now {new})" for name, (old, new) in both.items() if old != new]
