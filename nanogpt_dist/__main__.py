"""Entry point of the console script `nanogpt` and of `python -m nanogpt_dist`."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

_PACKAGE = Path(__file__).resolve().parent


def main() -> None:
    # Installed from a wheel, the folders cli, prepare and launch lie in nanogpt_dist/_app; in a
    # clone, beside nanogpt_dist. Whichever it is comes first on sys.path, ahead of any other
    # distribution's `cli`.
    sys.path.insert(0, str(_PACKAGE / "_app" if (_PACKAGE / "_app").is_dir() else _PACKAGE.parent))
    _open_descriptors()
    # a rank waits for others in C++, where no handler of ours would run
    if "RANK" not in os.environ:
        signal.signal(signal.SIGTERM, _stopped_while_loading)
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # else Ctrl-C is ignored, as by nohup
        signal.signal(signal.SIGINT, _interrupted_while_loading)
    from cli.main import main as run

    signal.signal(signal.SIGINT, heard)
    try:
        code = run()
    except KeyboardInterrupt:
        code = 130
    if "RANK" in os.environ or _in_a_group():
        _leave_at_once(code)
    sys.exit(code)


def _in_a_group() -> bool:
    """Whether an error has left this process in a process group, as world.connect() does."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _stopped_while_loading(number: int, frame: FrameType | None) -> None:
    """Until a command has its own way to stop: nothing has begun, the same command starts it."""
    os._exit(75)


def _interrupted_while_loading(number: int, frame: FrameType | None) -> None:
    """Ctrl-C before a command begins. What is loaded may make a KeyboardInterrupt another error."""
    os._exit(130)


def _open_descriptors() -> None:
    """Open /dev/null in place of a closed standard stream.

    Else the next file that is opened would be taken for the stream.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _leave_at_once(code: int) -> None:
    """End a rank without the interpreter's teardown.

    All is saved and closed by now. In the teardown gloo's threads may abort, upon which torchrun
    would call a finished run failed, and NCCL's may wait for ranks that are gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
