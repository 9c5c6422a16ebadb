"""The progress bar of commands that read many bytes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[str, int, int, int], None]


@contextmanager
def progress_bar(wanted: bool = True) -> Iterator[Report | None]:
    """A function (what, bytes done, bytes in all, tokens) that moves a bar on stderr.

    It shows MB/s, tokens/s and the time left. None: it is no terminal, or not wanted.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    pace = TextColumn("{task.fields[pace]}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        pace,
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        tasks: dict[str, Any] = {}
        started = time.monotonic()

        def report(what: str, done: int, total: int, tokens: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, completed=done, pace="")
            pace = (
                f"{tokens / max(1e-9, time.monotonic() - started):,.0f} tokens/s" if tokens else ""
            )
            bar.update(tasks[what], completed=done, total=total, pace=pace)

        yield report


@contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """The same for one thing that is done: a function (bytes done, bytes in all)."""
    with progress_bar() as report:
        yield None if report is None else lambda done, total: report(what, done, total, 0)
