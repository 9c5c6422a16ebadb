"""A run folder, live or old, read from its files alone: one RunRecord. No torch.

A file that is missing, torn or of another version leaves its part of the record empty.
"""

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve
from nanogpt_dist.errors import MissingInputError, NanogptError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.storage.events import EVENTS
from nanogpt_dist.storage.run_folder import SAMPLES, checkpoints_of
from nanogpt_dist.training.metrics import RECORD

Line = dict[str, Any]
Floats = NDArray[np.float64]
TAIL = 64  # bytes before the end of what was read, which tell whether a file was replaced
SILENT_S = 120.0  # without a line: a run elsewhere, whose lock cannot be asked, counts as killed


class JsonLines:
    """The objects of a file of JSON lines that grows; each line is read once.

    What is no object is left out; a last line without its end waits until it is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects: list[Line] = []
        self._offset, self._tail = 0, b""

    def read(self) -> list[Line]:
        """All objects, oldest first; [] where there is no file. The list grows with the file.

        Raises OSError where the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._tail))
                if file.read(len(self._tail)) != self._tail:  # another file by now
                    self._forget()
                    file.seek(0)
                self._take(file.read())
        except (FileNotFoundError, NotADirectoryError):
            self._forget()
        return self._objects

    def _forget(self) -> None:
        self._objects, self._offset, self._tail = [], 0, b""

    def _take(self, data: bytes) -> None:
        whole, end, torn = data.rpartition(b"\n")
        if torn and _object(torn) is not None:  # a file of others' may lack the last line's end
            whole, end, torn = data, b"", b""
        self._objects += [found for line in whole.split(b"\n") if (found := _object(line))]
        read = whole + end
        self._offset, self._tail = self._offset + len(read), (self._tail + read)[-TAIL:]


def _read(file: JsonLines) -> list[Line]:
    try:
        return file.read()
    except OSError:  # on a network's disk it may be there the next time
        return []


def _is_event(line: Line) -> bool:
    known = isinstance(line.get("event"), str) and type(line.get("step")) is int
    return known and _is_number(line.get("time"))


def _object(line: bytes) -> Line | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of its run; each list has the oldest first, but checkpoints.

    config: None where config.toml is missing or cannot be read; then `problem` says why. status,
    about: status.json and run.json, {} where there is none. verdict: running | done | stopped |
    failed | killed; None where the run has not begun. train, val: the lines of metrics.jsonl of
    logged steps and of evaluations. checkpoints: their folders, the newest first, good or bad.
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

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name or self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last one that was logged, evaluated or saved."""
        saved = self.status.get("step")
        steps = [line["step"] for lines in (self.train, self.val) for line in lines[-1:]]
        return max([*steps, saved if isinstance(saved, int) else 0])

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
        pairs = [(line["step"], line[key]) for line in lines if _is_number(line.get(key))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def last(self, key: str) -> Any:
        """The newest value of `key` that is not null, of a logged step or an evaluation."""
        lines = self.train if any(key in line for line in self.train) else self.val
        return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)

    def events_of(self, *kinds: str) -> list[Line]:
        """The events of these kinds."""
        return [event for event in self.events if event["event"] in kinds]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < np.inf


class RunReader:
    """Reads a run folder again and again; what has been read of its growing files is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics, self._events, self._samples = (
            JsonLines(folder / name) for name in (RECORD, EVENTS, SAMPLES)
        )
        self._config: tuple[int, TrainConfig | None, str] = (0, None, "")

    def read(self) -> RunRecord:
        """The run as it stands. Raises MissingInputError where the folder is no run."""
        _require_run(self.folder)
        train, val = _split(_read(self._metrics))
        events = tuple(line for line in _read(self._events) if _is_event(line))
        config, problem = self._read_config()
        about = _read_json(self.folder / "run.json")
        checkpoints: list[Path] = []
        with contextlib.suppress(NanogptError):
            checkpoints = storage.list_steps(checkpoints_of(self.folder))
        return RunRecord(
            self.folder,
            config,
            problem,
            _read_json(self.folder / "status.json"),
            about,
            self._verdict(about),
            train,
            val,
            events,
            tuple(_read(self._samples)),
            tuple(checkpoints),
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

    def _verdict(self, about: Line) -> str | None:
        verdict = run_folder.verdict_of(self.folder)
        elsewhere = about.get("host") not in (None, socket.gethostname())
        if verdict == "killed" and elsewhere and _seconds_since_written(self.folder) < SILENT_S:
            return "running"  # not every network file system carries locks
        return verdict


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
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and is_run(each))
    except OSError:
        return []


def _require_run(folder: Path) -> None:
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


def _split(lines: list[Line]) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Lines of logged steps and of evaluations; of a step that was made twice, the later ones."""
    kinds: tuple[list[Line], list[Line]] = [], []
    for line in lines:
        step = line.get("step")
        if type(step) is not int or not {"loss", "val_loss"} & line.keys():
            continue
        for kind in kinds:
            while kind and kind[-1]["step"] > step:
                kind.pop()
        kind = kinds["val_loss" in line]
        if kind and kind[-1]["step"] == step:
            kind.pop()
        kind.append(line)
    return tuple(kinds[0]), tuple(kinds[1])


def _seconds_since_written(folder: Path) -> float:
    """Since metrics.jsonl or status.json was written, by this machine's clock."""
    times = [0.0]
    for name in (RECORD, "status.json", "run.json"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return time.time() - max(times)
