"""A polite request to stop (SIGTERM, Ctrl-C), remembered until the loop asks for it."""

import signal
import time
from types import FrameType

DEBOUNCE_S = 1.0  # torchrun passes on the Ctrl-C that the terminal has sent already
IMPATIENT_S = 5.0


class StopRequest:
    """Truthy once SIGTERM or SIGINT came. A second Ctrl-C within five seconds leaves at once by KeyboardInterrupt."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def __bool__(self) -> bool:
        return self._asked_at is not None

    def listen(self) -> "StopRequest":
        """Take over SIGTERM and SIGINT of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        since = now - self._asked_at if self._asked_at is not None else None
        if number == signal.SIGINT and since is not None and DEBOUNCE_S < since < IMPATIENT_S:
            raise KeyboardInterrupt
        if since is None or since >= IMPATIENT_S:
            self._asked_at = now
