"""Saves of a training over ranks whose disk fails, or which are killed or stopped, at a chosen
system call of a chosen rank. Needs strace.

`fail_one_operation`, `kill_in_a_save` and `stop_in_a_save` are one try each, drawn from a seed.
`fail_operations` has many saves of one training fail, each at another place, with a save that must
succeed after each; `kill_at` and `stop_at` go through all places by their number.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.training.saver import Saver
from tests.conftest import TINY, fork_server
from tests.faults.strace import CannotTraceError, calls_of, injected, traced
from tests.fork_server import Done

# what each system call may be made to return; all of these are watched
ERRORS = {
    "openat": ["ENOSPC", "EIO", "EDQUOT"],
    "write": ["ENOSPC", "EIO", "EDQUOT"],
    "fsync": ["EIO", "ENOSPC", "EDQUOT"],
    "close": ["EIO", "EDQUOT"],
    "read": ["EIO"],
    "statfs": ["EIO"],
    "getdents64": ["EIO"],
    "chmod": ["EIO"],
    "rename": ["EIO", "ENOSPC"],
    "renameat2": ["EIO", "ENOSPC"],
    "mkdir": ["ENOSPC", "EIO", "EDQUOT"],
    "unlink": ["EIO"],
    "unlinkat": ["EIO"],
    "rmdir": ["EIO"],
}
WATCHED = 3  # the save whose calls are noted: the first that deletes an old one
FIRST = WATCHED + 2  # the first save that is disturbed, and the step that it saves
SHARE = 0.05  # of the errors at calls that change nothing, where all others are tried
TRIES = "tries.jsonl"
PLANNED = "planned.txt"


@dataclass(frozen=True)
class Fault:
    """What happens in a save: `what`, as strace takes it, at a rank's call `call` number `number`.

    line: that call in a save without a fault, as strace has it.
    """

    rank: int
    call: str
    number: int
    what: str
    line: str = ""


@dataclass(frozen=True)
class Try:
    """How a save with a fault, or one without, went.

    hit: the call at which it happened, None where the save did not come to it; raised: the save's
    error; problems: what was wrong afterwards.
    """

    fault: Fault | None
    hit: str | None
    raised: str | None
    problems: list[str]


@dataclass(frozen=True)
class Layout:
    """How a training saves: `strategy`, over so many ranks, beside the training or not."""

    strategy: str = "fsdp"
    async_save: bool = False
    ranks: int = 2

    def __str__(self) -> str:
        return f"{self.strategy}-{'async' if self.async_save else 'sync'}"

    def train(self, data: Path, run: Path, *more: object) -> list[str]:
        """Arguments of a training that saves each step, and goes on until it is stopped."""
        line = ["train", "--dataset", str(data), *TINY, "--out-dir", str(run), "--no-tensorboard"]
        line += ["--strategy", self.strategy if self.ranks > 1 else "single"]
        line += ["--async-save" if self.async_save else "--no-async-save", "--eval-iters", "1"]
        line += ["--max-iters", "100000", "--eval-interval", "100000", "--save-interval", "1"]
        line += ["--vocab-size", "257"]
        return [*line, "--log-interval", "100000", *map(str, more)]


# --- in the ranks -------------------------------------------------------------------------------


class Saves:
    """Stands in for Saver._commit in each rank: watches one save, then disturbs every other one.

    choose: the faults, of the calls that the ranks made in a save without one.
    """

    def __init__(self, folder: Path, choose: Callable[[list[Fault]], list[Fault]]) -> None:
        self.folder, self.choose = folder, choose
        self.commit = Saver._commit
        self.count = 0
        self.faults: list[Fault] | None = None

    def __call__(self, saver: Saver, *rest: Any) -> None:
        self.count += 1
        if self.count < WATCHED:
            self.commit(saver, *rest)
        elif self.count == WATCHED:
            self._watch(saver, *rest)
        elif self.count % 2 and self.faults:
            self._disturb(saver, self.faults.pop(0), *rest)
        else:
            if self.faults is None:
                self.faults = self._plan(saver)
            self._succeed(saver, *rest)
            if not self.faults:
                os.kill(os.getpid(), signal.SIGTERM)

    def _log(self, rank: int) -> Path:
        return self.folder / f"calls-{rank}.log"

    def _watch(self, saver: Saver, *rest: Any) -> None:
        with traced(self._log(saver.world.rank), ",".join(ERRORS)):
            self.commit(saver, *rest)

    def _plan(self, saver: Saver) -> list[Fault]:
        """The faults, the same on all ranks."""
        place = str(saver.run.path)
        mine = [
            [call.name, call.number, call.line]
            for call in calls_of(self._log(saver.world.rank))
            if place in call.line
        ]
        texts = saver.world.with_long_timeout.gather_texts(json.dumps(mine))
        calls = [
            Fault(rank, name, number, "", line)
            for rank, text in enumerate(texts)
            for name, number, line in json.loads(text)
        ]
        faults = self.choose(calls)
        if saver.world.is_rank0:
            (self.folder / PLANNED).write_text("\n".join(map(str, faults)))
        return faults

    def _disturb(self, saver: Saver, fault: Fault, *rest: Any) -> None:
        before = storage.list_steps(saver.run.checkpoints)
        raised: BaseException | None = None
        log = self._log(fault.rank)
        try:
            if saver.world.rank == fault.rank:
                what = f"{fault.call}:{fault.what}:when={fault.number}"
                with traced(log, fault.call, what):
                    self.commit(saver, *rest)
            else:
                self.commit(saver, *rest)
        except BaseException as error:
            raised = error
        if saver.world.is_rank0:  # which is the last to do something to the folder
            step = storage.step_name(rest[0].state.step)
            problems = what_is_wrong(saver.run.checkpoints, step, raised is None)
            if raised is not None and storage.list_steps(saver.run.checkpoints) != before:
                problems.append("a save that failed has changed the checkpoints")
            hit = injected(log)
            # what cannot be deleted is left until the next save
            if (left := left_over(saver.run.checkpoints)) and "/.trash-" not in (hit or ""):
                problems.append(f"left: {left}")
            told = None if raised is None else f"{type(raised).__name__}: {raised}"
            self._note(Try(fault, hit, told, problems))
        if raised is not None:
            raise raised

    def _succeed(self, saver: Saver, *rest: Any) -> None:
        """A save without a fault: what an earlier one has left is gone behind it, too."""
        self.commit(saver, *rest)
        if saver.world.is_rank0:
            step = storage.step_name(rest[0].state.step)
            problems = what_is_wrong(saver.run.checkpoints, step, True)
            if left := left_over(saver.run.checkpoints):
                problems.append(f"left: {left}")
            self._note(Try(None, None, None, problems))

    def _note(self, tried: Try) -> None:
        with (self.folder / TRIES).open("a") as file:
            file.write(json.dumps(asdict(tried)) + "\n")


def what_is_wrong(checkpoints: Path, step: str, saved: bool) -> list[str]:
    """What must not be so behind a save of `step`, which was `saved` or not."""
    steps, latest = storage.list_steps(checkpoints), storage.read_latest(checkpoints)
    problems = [f"{path.name}: {bad}" for path in steps if (bad := storage.verify(path))]
    if (steps[0].name == step) != saved:
        problems.append(f"the newest is {steps[0].name}; {step} was {'' if saved else 'not '}saved")
    if latest is None or not (checkpoints / latest).is_dir():
        problems.append(f"latest says {latest}")
    return problems


def left_over(checkpoints: Path) -> list[str]:
    """The names there that are neither a checkpoint's nor `latest`."""
    names = {path.name for path in checkpoints.iterdir()}
    return sorted(name for name in names - {storage.LATEST} if storage.step_of(name) is None)


def changes(call: Fault) -> bool:
    """Whether a call changes the disk, and does not only read it or close a file."""
    if call.call == "openat":
        return "O_CREAT" in call.line
    return call.call not in ("close", "read", "getdents64", "statfs")


def faults_of(calls: list[Fault], told: dict[str, Any]) -> list[Fault]:
    """What disturb() asks for, of the calls of a save; the same on all ranks."""
    changing = [call for call in calls if changes(call)]
    if told["signal"]:
        place = told["seed"] % len(changing)
        return [replace(changing[place], what=f"signal={told['signal']}")]
    draw, count = random.Random(told["seed"]), told["count"]
    faults = [replace(call, what=what) for call in calls for what in errors(call)]
    if count is not None:
        return draw.sample(faults, min(count, len(faults)))
    at_each = [replace(call, what=draw.choice(errors(call))) for call in changing]
    return at_each + [fault for fault in faults if not changes(fault) and draw.random() < SHARE]


def errors(call: Fault) -> list[str]:
    """What it may be made to return, as strace takes it."""
    return [f"error={error}" for error in ERRORS[call.call]]


def play(request: str) -> None:
    """Be the command `nanogpt ARGUMENTS`, whose saves are disturbed; request: JSON."""
    from nanogpt_dist.__main__ import main

    told = json.loads(request)
    saves = Saves(Path(told["folder"]), lambda calls: faults_of(calls, told))
    Saver._commit = lambda self, *rest: saves(self, *rest)  # type: ignore[method-assign]
    sys.argv = ["nanogpt", *told["arguments"]]
    main()


# --- in the test --------------------------------------------------------------------------------


def require_strace(folder: Path) -> None:
    """Raises CannotTraceError where a thread of this machine's processes cannot be traced."""
    with traced(folder / "strace.log", "mkdir"):
        (folder / "traced").mkdir()
    if not calls_of(folder / "strace.log"):
        raise CannotTraceError("strace sees nothing here")


def disturb(
    folder: Path,
    data: Path,
    layout: Layout,
    seed: int,
    count: int | None = 1,
    send: str | None = None,
) -> tuple[Done, list[Try]]:
    """A training into FOLDER/run of which `count` saves are disturbed, and how they went.

    By errors that `seed` draws; count: None: one at each call that changes the disk, and some at
    the others. send: by one signal, SIGKILL or SIGTERM, at call number `seed` of those.
    """
    told = {
        "folder": str(folder),
        "arguments": layout.train(data, folder / "run"),
        "seed": seed,
        "count": count,
        "signal": send,
    }
    program = f"from tests.faults.saves import play; play({json.dumps(told)!r})"
    done = fork_server().run("-c", program, folder=folder, ranks=layout.ranks, code=None)
    lines = (folder / TRIES).read_text().splitlines() if (folder / TRIES).exists() else []
    return done, [read_try(json.loads(line)) for line in lines]


def read_try(told: dict[str, Any]) -> Try:
    """A Try of its JSON."""
    return Try(**{**told, "fault": Fault(**told["fault"]) if told["fault"] else None})


# --- one try, from a seed -----------------------------------------------------------------------


def draw_layout(rng: random.Random) -> Layout:
    """One of the ways to save."""
    return Layout(rng.choice(["ddp", "fsdp"]), rng.random() < 0.5)


def fail_one_operation(rng: random.Random, folder: Path) -> str:
    """Let one system call of one rank's save fail, in a training in the empty `folder`; which one.

    Raises AssertionError where something is lost or left behind, or where training does not go on;
    CannotTraceError.
    """
    require_strace(folder)
    layout = draw_layout(rng)
    [tried] = fail_operations(folder, data_in(folder), layout, rng.getrandbits(32), count=1)
    return f"{layout}: {tried.fault}"


def kill_in_a_save(rng: random.Random, folder: Path) -> str:
    """Kill one rank at one system call of its save, in a training in the empty `folder`; which.

    Raises AssertionError where what was saved before is lost, where what is there is not whole, or
    where the next start leaves something behind; CannotTraceError.
    """
    require_strace(folder)
    layout = draw_layout(rng)
    killed = kill_at(folder, data_in(folder), layout, rng.getrandbits(32))
    go_on(folder, folder / "data")
    return f"{layout}: {killed}"


def stop_in_a_save(rng: random.Random, folder: Path) -> str:
    """Send one rank SIGTERM at one system call of its save, in a training in the empty `folder`.

    Returns which call. Raises AssertionError where the save under way is not finished, or the last
    step not saved; CannotTraceError.
    """
    require_strace(folder)
    layout = draw_layout(rng)
    return f"{layout}: {stop_at(folder, data_in(folder), layout, rng.getrandbits(32))}"


# --- what they check ----------------------------------------------------------------------------


def fail_operations(
    folder: Path,
    data: Path,
    layout: Layout,
    seed: int,
    count: int | None,
) -> list[Try]:
    """fail_one_operation(), for as many saves of one training as disturb() says.

    A save may make one call less than the one that was watched (a file that Python closes when it
    gets to it), so that a fault is not reached: one of ten at most.
    """
    done, tries = disturb(folder, data, layout, seed, count)
    assert done.code == 75, done.stderr[-2000:]
    disturbed = [each for each in tries if each.fault is not None]
    assert len(disturbed) == count or (count is None and len(disturbed) > 40)
    for each in tries:
        assert not each.problems, each
    missed = [each for each in disturbed if each.hit is None]
    assert 10 * len(missed) <= len(disturbed), missed
    for each in disturbed:
        assert each.raised is None or each.raised.startswith("StorageError: "), each
    told = done.stderr.count("training goes on; the last good one is ")
    assert told == sum(each.raised is not None for each in disturbed), done.stderr[-2000:]
    return disturbed


def kill_at(folder: Path, data: Path, layout: Layout, place: int) -> str:
    """kill_in_a_save(), at call number `place`; which one that is."""
    done, _ = disturb(folder, data, layout, place, send="SIGKILL")
    assert done.code in (-signal.SIGKILL, 74), (done.code, done.stderr[-2000:])
    checkpoints = folder / "run" / "checkpoints"
    newest = storage.list_steps(checkpoints)[0]
    assert storage.step_at(newest) in (FIRST - 1, FIRST), newest
    assert not (problems := what_is_wrong(checkpoints, newest.name, True)), problems
    storage.sweep(checkpoints)
    assert not left_over(checkpoints)
    return told_by(folder)


def stop_at(folder: Path, data: Path, layout: Layout, place: int) -> str:
    """stop_in_a_save(), at call number `place`; which one that is."""
    done, tries = disturb(folder, data, layout, place, send="SIGTERM")
    assert done.code == 75, (done.code, done.stderr[-2000:])
    assert not [each for each in tries if each.problems], tries
    assert [each.hit for each in tries if each.fault is not None] != [None], tries
    checkpoints = folder / "run" / "checkpoints"
    newest = storage.list_steps(checkpoints)[0]
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["verdict"], status["checkpoint"]) == ("stopped", newest.name)
    assert FIRST <= status["step"] == storage.step_at(newest) <= FIRST + 2
    assert not what_is_wrong(checkpoints, newest.name, True)
    assert not left_over(checkpoints)
    return told_by(folder)


def go_on(folder: Path, data: Path) -> None:
    """The next start, in one process: it makes two more steps, and leaves nothing behind."""
    checkpoints = folder / "run" / "checkpoints"
    last = storage.step_at(storage.list_steps(checkpoints)[0]) + 2
    line = Layout(ranks=1).train(data, folder / "run", "--max-iters", last)
    fork_server().run(*line, folder=folder)
    assert not (problems := what_is_wrong(checkpoints, storage.step_name(last), True)), problems
    assert not left_over(checkpoints)


def told_by(folder: Path) -> str:
    """The call at which the fault of a training in `folder` was to come."""
    return (folder / PLANNED).read_text()


def data_in(folder: Path) -> Path:
    """FOLDER/data, made if need be."""
    from tests.faults.trainings import prepare

    if not (folder / "data").exists():
        prepare(folder)
    return folder / "data"
