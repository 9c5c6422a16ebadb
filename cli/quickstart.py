"""`nanogpt quickstart`: the whole line once, from a corpus that Python carries to a sample."""

import os
import shlex
import sys

import typer

from launch.processes import run_and_pass_on
from launch.torchrun import python_path
from nanogpt_dist.errors import Exit

COMMANDS = [
    "prepare python-stdlib",
    "launch --nproc-per-node 2 train quickstart",
    "eval out/quickstart",
    "sample out/quickstart --prompt 'def read_' --max-new-tokens 200 --top-k 20",
]


def quickstart() -> None:
    """Prepare a small corpus, train on it in two processes, evaluate, sample.

    It takes about three minutes on a laptop.

    Each command is printed before it runs; all can be typed by hand.

    Writes data/python-stdlib and out/quickstart in the current folder; run again, it goes on where
    it was.
    """
    for command in COMMANDS:
        typer.secho(f"\n$ nanogpt {command}", bold=True)
        sys.stdout.flush()
        line = [sys.executable, "-m", "nanogpt_dist", *shlex.split(command)]
        code = run_and_pass_on(line, {**os.environ, **python_path(os.environ)})
        if code != Exit.DONE:
            raise typer.Exit(code)
    typer.secho(
        "\nAll of it stands in data/python-stdlib and out/quickstart. Next: nanogpt train --help",
        bold=True,
    )
