"""A run folder, live or old, read from its files alone: one RunRecord. No torch.

A file that is missing, torn or of another version leaves its part of the record empty.
"""

import contextlib
import itertools
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve
from nanogpt_dist.errors import MissingInputError, NanogptError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.storage.events import EVENTS
from nanogpt_dist.storage.json_lines import JsonLines, Line
from nanogpt_dist.storage.run_folder import SAMPLES, checkpoints_of
from nanogpt_dist.training.metrics import RECORD

Floats = NDArray[np.float64]
LARGEST_INT, LARGEST = 2**63 - 1, 1e300
MOST_STEPS = 2**53  # from there on a step is no step, but a damaged line
SILENT_S = 120.0  # without a line: a run elsewhere, whose lock cannot be asked, counts as killed
LATE = 10  # logged steps
SILENT_INTERVALS = 10  # and as many times its longest interval between two logged steps of late


def _read(file: JsonLines) -> list[Line]:
    try:
        return file.read()
    except OSError:  # on a network's disk it may be there the next time
        return []


def _is_event(line: Line) -> bool:
    known = isinstance(line.get("event"), str) and is_step(line.get("step"))
    return known and is_number(line.get("time"))


def is_step(value: Any) -> bool:
    """Whether it is a number of a step."""
    return type(value) is int and 0 <= value < MOST_STEPS


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of its run; each list has the oldest first, but checkpoints.

    config: None where config.toml is missing or cannot be read; then `problem` says why. status,
    about: status.json and run.json, {} where there is none. verdict: running | done | stopped |
    failed | killed; None where the run has not begun. train, val: the lines of metrics.jsonl of
    logged steps and of evaluations. checkpoints: their folders, the newest first, good or bad.
    is_silent: it counts as killed since it has written nothing for long; it may go on elsewhere.
    """

    folder: Path
    config: TrainConfig | None
    problem: str
    status: Line
    about: Line
    verdict: str | None
    train: tuple[Line, ...] = ()
    val: tuple[Line, ...] = ()
    events: tuple[Line, ...] = ()
    samples: tuple[Line, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    is_silent: bool = False

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name or self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last one that was logged, evaluated or saved."""
        saved = self.status.get("step")
        steps = [line["step"] for lines in (self.train, self.val) for line in lines[-1:]]
        return max([*steps, saved if is_step(saved) else 0])

    @property
    def max_iters(self) -> int | None:
        """Steps that it is to make."""
        return self.config.max_iters if self.config else None

    @property
    def tokens(self) -> int | None:
        """Trained on up to `step`; None where neither the settings nor a logged step tell."""
        return None if (found := self.tokens_at([self.step])) is None else int(found[0])

    def tokens_at(self, steps: Any) -> Floats | None:
        """Tokens trained on up to each of `steps`: (n,) → (n,); None where nothing tells."""
        if self.config is not None:
            before = self.config.ramp.tokens_before
            return np.array([before(int(step)) for step in steps], dtype=np.float64)
        known, tokens = self.series("tokens")
        return np.interp(steps, known, tokens) if len(known) else None

    def series(self, key: str) -> tuple[NDArray[np.int64], Floats]:
        """Steps and finite values of a figure of logged steps or evaluations, (n,) each.

        `val_loss` and what else stands beside it is of evaluations, `tokens` of logged steps.
        """
        lines = self.train if any(key in line for line in self.train) else self.val
        pairs = [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def last(self, key: str) -> Any:
        """The newest value of `key` that is not null, of a logged step or an evaluation."""
        lines = self.train if any(key in line for line in self.train) else self.val
        return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)

    def events_of(self, *kinds: str) -> list[Line]:
        """The events of these kinds."""
        return [event for event in self.events if event["event"] in kinds]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a run can have, and no bool: what is beyond is a damaged line's.

    Whole ones fit 64 bits, as numpy wants them; sums and differences of the others stay finite.
    """
    if type(value) is int:
        return -LARGEST_INT <= value <= LARGEST_INT
    return isinstance(value, float) and abs(value) <= LARGEST


def number(line: Line, key: str) -> Any:
    """The finite number at `key`, or None: a line may hold anything."""
    return value if is_number(value := line.get(key)) else None


class _Split:
    """Lines of logged steps and of evaluations; of a step that was made twice, the later ones."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._count = 0  # of those that were taken
        self._kinds: tuple[list[Line], list[Line]] = [], []
        self._found: tuple[tuple[Line, ...], tuple[Line, ...]] = (), ()

    def of(self, lines: list[Line]) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
        """Take what is new in `lines`, all of them where it is another list than before."""
        if lines is not self._lines:
            self._lines, self._count, self._kinds, self._found = lines, 0, ([], []), ((), ())
        if self._count < len(lines):
            for line in itertools.islice(lines, self._count, None):
                self._take(line)
            self._count = len(lines)
            self._found = tuple(self._kinds[0]), tuple(self._kinds[1])
        return self._found

    def _take(self, line: Line) -> None:
        step = line.get("step")
        if not is_step(step) or not {"loss", "val_loss"} & line.keys():
            return
        for kind in self._kinds:
            while kind and kind[-1]["step"] > step:
                kind.pop()
        kind = self._kinds["val_loss" in line]
        if kind and kind[-1]["step"] == step:
            kind.pop()
        kind.append(line)


class RunReader:
    """Reads a run folder again and again; what has been read of its growing files is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics, self._events, self._samples = (
            JsonLines(folder / name) for name in (RECORD, EVENTS, SAMPLES)
        )
        self._split = _Split()
        self._config: tuple[int, TrainConfig | None, str] = (0, None, "")

    def read(self) -> RunRecord:
        """The run as it stands. Raises MissingInputError where the folder is no run."""
        require_run(self.folder)
        train, val = self._split.of(_read(self._metrics))
        events = tuple(line for line in _read(self._events) if _is_event(line))
        config, problem = self._read_config()
        about = _read_json(self.folder / "run.json")
        checkpoints: list[Path] = []
        with contextlib.suppress(NanogptError):
            checkpoints = storage.list_steps(checkpoints_of(self.folder))
        verdict, is_silent = self._verdict(about, train)
        return RunRecord(
            self.folder,
            config,
            problem,
            _read_json(self.folder / "status.json"),
            about,
            verdict,
            train,
            val,
            events,
            tuple(_read(self._samples)),
            tuple(checkpoints),
            is_silent,
        )

    def _read_config(self) -> tuple[TrainConfig | None, str]:
        """The settings, read anew where the file has changed, and why they cannot be read."""
        path = self.folder / run_folder.CONFIG
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._config[0]:
                self._config = changed, *_settings(path)
        except OSError as error:
            return None, f"{shown(path)} cannot be read: {error.strerror}"
        return self._config[1:]

    def _verdict(self, about: Line, train: tuple[Line, ...]) -> tuple[str | None, bool]:
        """How it stands, and whether only its silence says so."""
        verdict = run_folder.verdict_of(self.folder)
        if verdict != "killed" or about.get("host") in (None, socket.gethostname()):
            return verdict, False
        # not every network file system carries locks
        late = [line.get("interval_s") for line in train[-LATE:]]
        longest = max((each for each in late if is_number(each)), default=0.0)
        limit = max(SILENT_S, SILENT_INTERVALS * longest)
        is_silent = _seconds_since_written(self.folder) >= limit
        return ("killed" if is_silent else "running"), is_silent


def read_run(folder: Path) -> RunRecord:
    """The run in `folder` as it stands. Raises MissingInputError where the folder is no run."""
    return RunReader(folder).read()


def is_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return not run_folder.is_checkpoint(folder) and (
        run_folder.has_begun(folder) or (folder / RECORD).is_file()
    )


def runs_in(folder: Path) -> list[Path]:
    """The run folder `folder` itself, or those in it, by name; [] where there are none."""
    if is_run(folder):
        return [folder]
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            with contextlib.suppress(OSError):  # one that cannot be read hides no other
                if each.is_dir() and is_run(each):
                    found.append(each)
    return sorted(found)


def require_run(folder: Path) -> None:
    """Raise MissingInputError where `folder` holds no run."""
    if not folder.is_dir():
        raise MissingInputError(f"{shown(folder)} does not exist; give a run, like out/quickstart")
    if run_folder.is_checkpoint(folder):
        run = run_folder.run_of(folder)
        raise MissingInputError(f"{shown(folder)} is a checkpoint; give its run: {shown(run)}")
    if not is_run(folder):
        raise MissingInputError(
            f"{shown(folder)} is no run: it has no run.json and {RECORD}; give a run, like "
            "out/quickstart"
        )


def _settings(path: Path) -> tuple[TrainConfig | None, str]:
    try:
        return resolve(read_toml(path)), ""
    except NanogptError as error:
        return None, f"{shown(path)}: {error}"


def _read_json(path: Path) -> Line:
    try:
        return run_folder.read_json(path)
    except NanogptError:
        return {}


def _seconds_since_written(folder: Path) -> float:
    """Since the run wrote a line, an event or a checkpoint, by this machine's clock."""
    times = [0.0]
    for name in (RECORD, EVENTS, "status.json", "run.json", "checkpoints"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return time.time() - max(times)
