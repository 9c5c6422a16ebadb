"""A sweep: the runs that FILE.toml asks for, their names and commands, how they stand. No torch.

preset = "quickstart"        a preset, a file of settings, or a run
out = "out/sweeps/rates"     folder of the runs; unset: out/sweeps/ and the file's name
max_iters = 200              settings that all runs share

[grid]                       all combinations of these
muon_learning_rate = [1e-2, 2e-2]

[[run]]                      and these
name = "wide"
n_embd = 256
"""

import hashlib
import itertools
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist import load_config
from nanogpt_dist.config import ADDRESS, TrainConfig, by_own_names, read_toml, resolve
from nanogpt_dist.errors import ConfigError, MissingInputError, NanogptError, UsageError
from nanogpt_dist.ladder.changes import first_change
from nanogpt_dist.presets import DEFAULT_PRESET
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown

SWEEPS = run_folder.OUT / "sweeps"
PLAIN = "base"  # name of a run in which nothing differs
MAX_NAME = 100  # characters of a run's name
MAX_RUNS = 10_000
NAME = re.compile(r"[\w][\w.+=,@-]*")
Settings = dict[str, Any]


@dataclass(frozen=True)
class SweepRun:
    """One run: its name, which is its folder's, and the settings that go on top of the preset.

    differs: those of them that not all runs of the sweep share.
    """

    name: str
    differs: Settings
    settings: Settings


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in the order in which they are made."""

    preset: str
    out: Path
    runs: tuple[SweepRun, ...]

    def folder(self, run: SweepRun) -> Path:
        """The run folder of `run`."""
        return self.out / run.name

    def arguments(self, run: SweepRun) -> list[str]:
        """What stands behind `nanogpt` to make `run`, or to go on with it."""
        where = ["--out-dir", str(self.folder(run))]
        return ["train", self.preset, *flags(run.settings), *where]

    def config(self, run: SweepRun) -> TrainConfig:
        """Its settings. Raises as load_config.load()."""
        given = {**run.settings, "out_dir": str(self.folder(run))}
        return load_config.load(self.preset, given)

    def chosen(self, which: str) -> SweepRun:
        """The run of this name or number, from 0. Raises UsageError."""
        numbers = {str(number): run for number, run in enumerate(self.runs)}
        found = {**numbers, **{run.name: run for run in self.runs}}
        if which in found:
            return found[which]
        raise UsageError(
            f"--only {which}: give a number from 0 to {len(self.runs) - 1}, or a name, which "
            "--dry-run shows"
        )


def read(file: Path) -> Sweep:
    """The sweep that FILE.toml asks for, each of its runs checked.

    Raises MissingInputError, ConfigError.
    """
    if not file.is_file():
        raise MissingInputError(
            f"{shown(file)} is no file; write preset = … and a [grid] into it: nanogpt sweep --help"
        )
    content = read_toml(file)
    try:
        return checked(expand(content, SWEEPS / file.stem))
    except ConfigError as error:
        raise ConfigError(f"{shown(file)}: {error}") from None


def expand(content: dict[str, Any], out: Path) -> Sweep:
    """The sweep of a file's content; out: where it names none. Raises ConfigError.

    Runs of the grid come first, the last setting changing fastest; then those of the list.
    """
    shared = dict(content)
    preset, grid, runs = (
        shared.pop(name, default)
        for name, default in (("preset", DEFAULT_PRESET), ("grid", {}), ("run", []))
    )
    out = _folder(shared.pop("out", str(out)))
    _check(preset, grid, runs, shared)
    found = [_named(None, differs, shared) for differs in combinations(by_own_names(grid))]
    for one in runs:
        given = dict(one)
        found.append(_named(given.pop("name", None), by_own_names(given), shared))
    names = [run.name for run in found]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ConfigError(f"two runs are called {twice}; give one a name: [[run]] name = …")
    return Sweep(preset, out, tuple(found))


def _folder(out: Any) -> Path:
    """A file's `out`, as `nanogpt train` takes an out_dir. Raises ConfigError."""
    if not isinstance(out, str) or not out or ADDRESS.match(out):
        raise ConfigError(f'out = {out!r} is no folder; write out = "out/sweeps/rates"')
    return Path(os.path.expanduser(out))


def combinations(grid: dict[str, list[Any]]) -> list[Settings]:
    """All combinations of the grid's values; none where there is no grid."""
    if not grid:
        return []
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _check(preset: Any, grid: Any, runs: Any, shared: Settings) -> None:
    """Raises ConfigError where the file is not as it should be."""
    if not isinstance(preset, str):
        raise ConfigError('preset is no name; write preset = "quickstart"')
    if not isinstance(grid, dict) or not isinstance(runs, list):
        raise ConfigError("grid is one table, [grid], and runs are a list of them, [[run]]")
    if not grid and not runs:
        raise ConfigError("neither a [grid] nor a [[run]]; write [grid] and a list for a setting")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{name} in [grid] is no list of values; write {name} = [1, 2]")
        if name in shared:
            raise ConfigError(f"{name} stands in [grid] and above it; leave out one of them")
    count = len(runs) + (math.prod(map(len, grid.values())) if grid else 0)
    if count > MAX_RUNS:
        raise ConfigError(f"that makes {count:,} runs, and {MAX_RUNS:,} are the most; try fewer")
    if any(not isinstance(one, dict) for one in runs):
        raise ConfigError("a run is a table: write [[run]], and its settings below")
    for table in (shared, grid, *runs):
        if "out_dir" in table:
            raise ConfigError("each run has a folder of its own below out; leave out out_dir")


def _named(name: Any, differs: Settings, shared: Settings) -> SweepRun:
    name = name_of(differs) if name is None else name
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"the name {name!r} is no folder's; give letters, digits and any of . + = , @ - _"
        )
    return SweepRun(name, differs, {**shared, **differs})


def name_of(differs: Settings) -> str:
    """A run's name: setting=value, …; a long one is cut, with a digest of the rest."""
    parts = [f"{name}={_word(value)}" for name, value in differs.items()]
    name = ",".join(parts) or PLAIN
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _word(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)


def flags(settings: Settings) -> list[str]:
    """Settings as flags of `nanogpt train`; of a list one flag for each element."""
    given = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            given.append(flag if value else f"--no{flag[1:]}")
        else:
            each = value if isinstance(value, list | tuple) else [value]
            given += [word for one in each for word in (flag, str(one))]
    return given


def checked(sweep: Sweep, otherwise: str = "give another out = …") -> Sweep:
    """`sweep`, whose runs are such as `nanogpt train` takes.

    otherwise: what to do about a folder with another run. Raises ConfigError for it, and for wrong
    settings.
    """
    for run in sweep.runs:
        try:
            config = sweep.config(run)
        except NanogptError as error:
            raise type(error)(f"run {run.name}: {error}") from None
        folder = sweep.folder(run)
        if not run_folder.has_begun(folder) or not (folder / run_folder.CONFIG).is_file():
            continue
        before = resolve(read_toml(folder / run_folder.CONFIG))
        if change := first_change(before, config, run.settings):
            raise ConfigError(f"{shown(folder)} was trained with {change}; {otherwise}")
    return sweep


def state(folder: Path, max_iters: int) -> str:
    """How a run stands: done | running | stopped | failed | killed | not begun.

    done: with all of its max_iters steps; one that was asked for fewer is stopped.
    """
    said = run_folder.verdict_of(folder)
    if said == "done" and run_folder.read_status(folder).get("step", 0) < max_iters:
        return "stopped"
    return said or "not begun"
