"""`nanogpt report`: runs as a page."""

from pathlib import Path
from typing import Annotated

import typer

from cli import completing
from cli.terminal import echo

NAME = "report.html"


def report(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            autocompletion=completing.runs,
            help="One run, or several side by side.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help=f"The page; unset: {NAME} in the run folder, of several runs out/{NAME}.",
        ),
    ] = None,
) -> None:
    """Write runs as one HTML file that any browser shows, without a network.

    Curves, samples, settings, events, checkpoints. Runs that are still training can be shown.
    """
    from nanogpt_dist.errors import StorageError
    from nanogpt_dist.storage.run_folder import OUT

    place = out or (targets[0] if len(targets) == 1 else OUT) / NAME
    try:
        written = write_page(targets, place)
    except StorageError as error:
        raise error if out else StorageError(f"{error}; --out FILE writes it elsewhere") from None
    echo(f"{written} is written")


def write_page(runs: list[Path], out: Path) -> Path:
    """Write the page of these runs; where it is. Raises MissingInputError, StorageError."""
    from nanogpt_dist.html_report.page import page
    from nanogpt_dist.inspect.run_record import read_run
    from nanogpt_dist.storage.durable import storage_errors
    from nanogpt_dist.storage.user_file import write_user_file

    content = page([read_run(run) for run in runs])
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_user_file(out, content)
    return out
