"""The command line with `launch` alone in it, and, as
`launch_app.py supervise TIMEOUT_S COMMAND …`, the supervisor.
"""

import os
import sys

import typer

from cli.launch import CONTEXT, launch
from launch import supervisor
from nanogpt_dist.errors import NanogptError

app = typer.Typer()
app.command(name="launch", context_settings=CONTEXT)(launch)


@app.command()
def train() -> None:
    """Stands for a command that can be launched."""


if __name__ == "__main__":
    try:
        if sys.argv[1] == "supervise":
            sys.exit(
                supervisor.run(supervisor.Run(sys.argv[3:], dict(os.environ), float(sys.argv[2])))
            )
        app()
    except NanogptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
