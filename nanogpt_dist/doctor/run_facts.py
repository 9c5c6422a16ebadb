"""What the files of a run say, read once and without trust: any of them may be cut or edited."""

import contextlib
import json
import re
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.inspect.run_record import RunRecord, is_number, read_run
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import open_regular

Line = dict[str, Any]
MAX_STEP = 2**40
HOST = re.compile(r"\w[\w.:-]{0,99}")  # ssh would read -… as an option


def number(values: Line, key: str) -> float | None:
    """The finite number at `key`, or None."""
    return float(value) if is_number(value := values.get(key)) else None


def count(values: Line, key: str) -> int | None:
    """The whole number from 0 on at `key`, as a step or a process id is one; or None."""
    value = values.get(key)
    return value if type(value) is int and 0 <= value <= MAX_STEP else None


def word(values: Line, key: str) -> str:
    """The text at `key`, "" where there is none."""
    value = values.get(key)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class RunFacts:
    """A run folder as it was when it was read.

    state: state.json of the newest checkpoint. holder: the note in run.lock of who holds the lock,
    or held it last; held: whether it is held. wrong: {file: what is wrong with it}.
    """

    record: RunRecord
    state: Line
    holder: Line
    held: bool
    wrong: dict[str, NanogptError] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.record.folder

    @property
    def config(self) -> TrainConfig | None:
        """None where config.toml cannot be used, which `wrong` then says."""
        return self.record.config

    @property
    def status(self) -> Line:
        return self.record.status

    @property
    def verdict(self) -> str | None:
        return self.record.verdict

    @property
    def steps(self) -> tuple[Path, ...]:
        """The checkpoints, newest first."""
        return self.record.checkpoints

    @cached_property
    def train(self) -> list[Line]:
        """What was logged of steps."""
        return [line for line in self.record.train if count(line, "step") is not None]

    @cached_property
    def val(self) -> list[Line]:
        """What was logged of evaluations."""
        return [line for line in self.record.val if count(line, "step") is not None]

    @cached_property
    def step(self) -> int:
        """The last step that is known of."""
        logged = [line["step"] for line in (*self.train[-1:], *self.val[-1:])]
        newest = [storage.step_at(self.steps[0])] if self.steps else []
        return max([*logged, *newest, count(self.status, "step") or 0])

    @property
    def lost(self) -> str:
        """The checkpoint that status.json names where none is left: a resume is refused then."""
        return "" if self.steps else str(self.status.get("checkpoint") or "")

    @property
    def has_begun(self) -> bool:
        """Whether it came to its first step: config.toml is written just before."""
        left = self.steps or self.train or self.val or self.lost
        return bool(left) or (self.path / run_folder.CONFIG).exists()

    @property
    def ranks(self) -> int:
        """Ranks of the last attempt; 1 where that is not known."""
        return count(self.record.about, "world_size") or 1

    @property
    def host(self) -> str:
        """Where the last attempt was started; "" where that is not known."""
        name = word(self.holder, "host") or word(self.record.about, "host")
        return name if HOST.fullmatch(name) else ""

    @property
    def is_here(self) -> bool:
        """Whether that was this machine, or is not known."""
        return self.host in ("", socket.gethostname())

    @property
    def pid(self) -> int | None:
        """The process that holds the lock, or held it last."""
        return count(self.holder, "pid") or count(self.record.about, "pid")

    @property
    def is_finished(self) -> bool:
        """Whether a resume would train nothing more."""
        last = self.config.max_iters if self.config is not None else 0
        return self.verdict == "done" and not self.held and self.step >= last

    def train_line(self, *flags: object) -> str:
        """The command that goes on with this run, on as many ranks as before."""
        return shlex.join([*self._launch, "train", str(self.path), *map(str, flags)])

    def resume_line(self) -> str:
        """What to type to go on, also where the checkpoints are gone."""
        if not self.lost:
            return self.train_line()
        folder = run_folder.checkpoints_of(self.path)
        return f"restore {folder}, or start over: {self.train_line('--fresh')}"

    def change_line(self, *flags: object) -> str:
        """What to type to train on with other settings; a run that goes on is stopped first."""
        stop = "stop it by Ctrl-C or SIGTERM; then " if self.held else ""
        return f"{stop}{self.train_line(*flags)}"

    def branch_line(self, checkpoint: Path, name: str, *flags: object) -> str:
        """The command that begins another run, RUN-name, with `checkpoint` of this one."""
        line = [*self._launch, "train", str(checkpoint), "--out-dir", str(self.beside(name))]
        return shlex.join([*line, *map(str, flags)])

    def fresh_line(self, name: str, *flags: object) -> str:
        """The command that starts over, in RUN-name, with the settings of this run."""
        line = [*self._launch, "train", str(self.path), "--out-dir", str(self.beside(name))]
        return shlex.join([*line, *map(str, flags)])

    def beside(self, name: str) -> Path:
        """The folder RUN-name beside the run."""
        own = self.path.resolve().name if self.path.name in ("", "..") else self.path.name
        return self.path.parent / f"{own}-{name}"

    @property
    def _launch(self) -> list[str]:
        ranks = ["launch", "--nproc-per-node", str(self.ranks)] if self.ranks > 1 else []
        return ["nanogpt", *ranks]


def read_facts(run: Path) -> RunFacts:
    """What stands in the run folder `run`, whatever is missing or damaged in it.

    Raises MissingInputError where it is no run.
    """
    record, wrong = read_run(run), _unreadable(run)
    state: Line = {}
    for folder in record.checkpoints:
        with contextlib.suppress(NanogptError):  # a damaged checkpoint is told as such
            state = run_folder.read_json(folder / "state.json")
        if state:
            break
    lock = run / storage.LOCK
    return RunFacts(record, state, _holder(lock), storage.is_held(lock), wrong)


def _unreadable(run: Path) -> dict[str, NanogptError]:
    """The files of a run that cannot be used, each with its error."""
    looks: dict[str, Callable[[], object]] = {
        run_folder.CONFIG: lambda: resolve(read_toml(run / run_folder.CONFIG)),
        "status.json": lambda: run_folder.read_status(run),
        "run.json": lambda: run_folder.read_json(run / "run.json"),
        "checkpoints": lambda: storage.list_steps(run_folder.checkpoints_of(run)),
    }
    wrong = {}
    for name, look in looks.items():
        try:
            look()
        except NanogptError as error:
            wrong[name] = error
    return wrong


def _holder(lock: Path) -> Line:
    """The note in run.lock of who holds the lock, or held it last."""
    try:
        with open_regular(lock) as file:
            note = json.loads(file.read(1000))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
