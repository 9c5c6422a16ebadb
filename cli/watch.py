"""`nanogpt watch`: live runs in the terminal, from their files alone."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json, note
from cli.terminal import FILE, columns, echo

if TYPE_CHECKING:
    from nanogpt_dist.inspect.run_record import RunReader, RunRecord

OUT = Path("out")
LINES = 60  # of a frame that goes to a file


def watch(
    targets: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN|FOLDER]...",
            autocompletion=completing.runs,
            help="Runs, or a folder of runs; out/ if nothing is given.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and end; so it is without a terminal.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(metavar="S", min=0.1, max=3600, help="Seconds between two frames."),
    ] = 2.0,
    json: Json = False,
) -> None:
    """Watch runs while they train: losses, speed, what the time goes to, the last checkpoint.

    From their files alone, on any machine that sees the folder. Ends when all have ended, or by
    Ctrl-C; the runs do not notice.
    """
    watched = Watched(targets or [OUT])
    if once or not (json or sys.stdout.isatty()):
        watched.require_a_run()
        _show(watched, json)
        return
    try:
        if json:
            _go_on(watched, interval, lambda: _show(watched, json))
        else:
            _live(watched, interval)
    except KeyboardInterrupt:  # the way to end it
        return
    if watched.ended and not watched.waited:
        where = ", ".join(map(str, watched.targets))
        note(f"nothing goes on in {where}: type it again once a training has begun")


class Watched:
    """The runs under some folders, read again for each frame."""

    def __init__(self, targets: list[Path]) -> None:
        self.targets = targets
        self.runs: list[tuple[RunRecord, dict[str, Any]]] = []
        self.waited = False  # whether a run went on, or was yet to appear
        self._readers: dict[Path, RunReader] = {}
        self._empty: list[Path] = []  # targets without a run

    def read(self) -> None:
        """Read what is new; a run may have appeared, or be gone."""
        from nanogpt_dist.errors import NanogptError
        from nanogpt_dist.inspect.run_record import RunReader, runs_in
        from nanogpt_dist.inspect.standing import standing

        found = {target: runs_in(target) for target in self.targets}
        self._empty = [target for target, runs in found.items() if not runs]
        folders = dict.fromkeys(run for runs in found.values() for run in runs)
        self._readers = {run: self._readers.get(run) or RunReader(run) for run in folders}
        self.runs = []
        for reader in self._readers.values():
            try:
                record = reader.read()
            except NanogptError:  # removed since it was found
                continue
            self.runs.append((record, standing(record, time.time())))
        self.waited = self.waited or not self.ended

    @property
    def ended(self) -> bool:
        """Whether there are runs, and all of them have ended; one that is only silent has not."""
        from nanogpt_dist.inspect.standing import ENDED

        ended = (one["verdict"] in ENDED and not run.is_silent for run, one in self.runs)
        return bool(self.runs) and all(ended)

    def require_a_run(self) -> None:
        """Raises MissingInputError where a target is no run and holds none."""
        from nanogpt_dist.errors import MissingInputError
        from nanogpt_dist.inspect.run_record import read_run, runs_in
        from nanogpt_dist.storage.durable import shown

        for target in self.targets:
            if runs_in(target):
                continue
            if target == OUT or (target.is_dir() and not any(target.iterdir())):
                raise MissingInputError(
                    f"no run under {shown(target)} yet; type: nanogpt quickstart, or name a run"
                )
            if not target.exists():  # a training makes it once it has read its settings and data
                raise MissingInputError(
                    f"{shown(target)} does not exist; type it again once the training has begun, "
                    "or give a run, like out/quickstart"
                )
            read_run(target)  # says what it is instead

    @property
    def note(self) -> str:
        """What is waited for."""
        if not self._empty:
            return ""
        where = ", ".join(str(target) for target in self._empty)
        told = f"no run under {where} yet: waiting for one (Ctrl-C ends)"
        absent = ", ".join(str(target) for target in self._empty if not target.exists())
        return f"{told}; not there: {absent}" if absent else told


def _go_on(watched: Watched, interval: float, show: Any) -> None:
    """show() each interval until all runs have ended."""
    while True:
        show()
        if watched.ended:
            return
        time.sleep(interval)


def _show(watched: Watched, as_json: bool) -> None:
    """Print one frame."""
    watched.read()
    if as_json:
        from nanogpt_dist.storage.run_folder import to_json

        runs = [figures for _, figures in watched.runs]
        echo(to_json({"time": round(time.time(), 3), "runs": runs}))
        return
    from rich.console import Console

    width = min(columns() or 100, FILE)
    console = Console(highlight=False, width=width, emoji=False)
    console.print(_frame(watched, width, console.height if sys.stdout.isatty() else LINES))


def _frame(watched: Watched, width: int, height: int) -> Any:
    from cli.watch_frame import frame

    return frame(watched.runs, width, height, not _has_braille(), watched.note)


def _has_braille() -> bool:
    """Whether standard output can take it."""
    try:
        "⣿●".encode(sys.stdout.encoding or "ascii", "strict")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _live(watched: Watched, interval: float) -> None:
    """Frames on a screen of their own; the last one stays on the terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, emoji=False)
    with Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,  # what stands in for it has no encoding
    ) as live:

        def show() -> None:
            watched.read()
            live.update(_frame(watched, console.width, console.height), refresh=True)

        with contextlib.suppress(KeyboardInterrupt):
            _go_on(watched, interval, show)
    console.print(_frame(watched, console.width, console.height))
