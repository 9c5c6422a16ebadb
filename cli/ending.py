"""How a process ends: an error is one line, a verdict for a launcher, and an exit code."""

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import typer

from cli.options import flush_or_drop, rank
from launch import verdict
from nanogpt_dist import errors
from nanogpt_dist.errors import MAX_LINE, Exit, NanogptError, OutOfMemoryError, one_line
from nanogpt_dist.start_again import start_again

DEBUG = "NANOGPT_DEBUG"  # set by --debug, inherited by the ranks that a command starts


def code_of(error: BaseException) -> int:
    """Print the line of `error`, and with --debug its traceback; what this process is to return."""
    flush_or_drop()
    if _is_broken_pipe(error):  # `nanogpt … | head`
        return Exit.DONE
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if isinstance(error, OutOfMemoryError) and error.falls_back:
        start_again()
    return _leave(*explain(error), quiet=isinstance(error, NanogptError) and error.quiet)


def exit_with(error: BaseException) -> NoReturn:
    """End this process from any thread, without the interpreter's teardown."""
    code = code_of(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def explain(error: BaseException) -> tuple[int, str, bool]:
    """Exit code, line, and whether all ranks are known to end in the same way."""
    if isinstance(error, typer.TyperException):
        # none where a command alone has shown its help
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        return Exit.USAGE, f"{message}; --help shows what there is" if message else "", True
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None), "", False
    return *errors.explain(error), isinstance(error, NanogptError) and error.agreed


def _is_broken_pipe(error: BaseException) -> bool:
    """Whether standard output is gone; typer has made a SystemExit of it."""
    return isinstance(
        error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError
    )


def _leave(code: int, line: str, agreed: bool, quiet: bool = False) -> int:
    """Print the line once, leave the verdict for a launcher; returns this process's exit code."""
    mine = rank()
    where = f" (rank {mine})" if mine and not agreed else ""
    prefix = f"nanogpt{where}: " if code == Exit.STOPPED else f"nanogpt: error{where}: "
    line = one_line(line, MAX_LINE - len(prefix))
    left = not quiet and verdict.write(verdict.Verdict(code, line, mine, agreed))
    if line and not quiet and (mine == 0 or not agreed):
        with suppress(OSError):  # the terminal may be gone
            print(prefix + line, file=sys.stderr, flush=True)
    # Under a launcher an end that all ranks agree on is told by the verdict; torchrun is to see
    # that all went well.
    return Exit.DONE if left and agreed else code
