"""A request to stop (SIGTERM, SIGHUP, SIGUSR1, Ctrl-C).

Obeyed at once before the work begins, else remembered.
"""

import contextlib
import os
import signal
import time
from types import FrameType

from nanogpt_dist.errors import StoppedError

# HUP: no terminal; USR1: a batch system
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
DEBOUNCE_S = 1.0  # torchrun passes on the Ctrl-C that the terminal has sent already
IMPATIENT_S = 5.0


class StopRequest:
    """Truthy once a signal of SIGNALS came.

    Before defer() the first such signal raises StoppedError where it finds us.

    A second Ctrl-C within five seconds leaves at once by KeyboardInterrupt. message: that error's
    message.
    """

    def __init__(self, message: str = "stopped; the same command starts or resumes it") -> None:
        self.message = message
        self._asked_at: float | None = None
        self._deferred = False
        self._answer = ""

    def __bool__(self) -> bool:
        return self._asked_at is not None

    def listen(self) -> "StopRequest":
        """Take over the signals of this process, but for ignored ones (nohup).

        SIGUSR1 in any case: a launcher has it ignored until we listen, as whoever does not dies of
        it.
        """
        for number in SIGNALS:
            if number == signal.SIGUSR1 or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        return self

    def defer(self, answer: str = "") -> None:
        """From now on whoever looks at us decides when to stop.

        answer: a line for stderr when a signal comes, since that may take a while.
        """
        self._deferred, self._answer = True, answer

    def ask(self) -> None:
        """Ask to stop, as a signal does."""
        self._asked_at = time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        since = now - self._asked_at if self._asked_at is not None else None
        if number == signal.SIGINT and since is not None and DEBOUNCE_S < since < IMPATIENT_S:
            raise KeyboardInterrupt
        if since is None or since >= IMPATIENT_S:
            self._asked_at = now
            self._tell()
        if not self._deferred and since is None:
            raise StoppedError(self.message)

    def _tell(self) -> None:
        if self._deferred and self._answer:
            clear = "\r\x1b[K" if os.isatty(2) else ""  # the progress line of a terminal
            with contextlib.suppress(OSError):  # not sys.stderr: it may be writing just now
                os.write(2, f"{clear}{self._answer}\n".encode())
