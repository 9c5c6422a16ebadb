"""Retry what a library asks of the hub, until faults in a row have lasted too long.

The libraries retry some faults, at some places, for half a minute. Here it is done once, below
them, where all their requests pass: the `send` of the client that they share. A body that breaks
off goes on at the byte where it broke.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import SystemRandom  # the run's own generator stays as it is
from typing import Any

from nanogpt_dist.errors import HubUnavailableError, UsageError, clipped

FAULT_BUDGET_S = 300.0  # of faults in a row; a byte that arrives ends the row
# the same, where the hub has never answered this process: most likely there is no network
UNHEARD_S = 20.0
UNHEARD_TIMEOUT_S = 10.0  # to connect then
TIMEOUT_S = 30.0  # to connect, and between two pieces of a body
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# the hub counts requests in windows of 5 minutes, and FAULT_BUDGET_S is as long
LONGEST_RETRY_AFTER_S = 290.0
NOTE_AT_TRY = 3
AGAIN = "run the same command again: it fetches only what is missing"


class FetchStoppedError(Exception):
    """Nobody waits for this download any more."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long requests are retried, and who is told.

    stop: set when nobody waits for the answer any more. note: called with a line when there is
    trouble. budget_s: how long faults in a row may last; None: FAULT_BUDGET_S.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    note: Callable[[str], None] | None = None
    budget_s: float | None = None


_policy: ContextVar[RetryPolicy | None] = ContextVar("policy", default=None)
_answered = threading.Event()  # whether any request of this process was ever answered


@contextmanager
def retrying(policy: RetryPolicy) -> Iterator[None]:
    """Requests of the block, in this thread, follow `policy`."""
    before = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(before)


class Retries:
    """The tries of one request since something last came through, and the waits between them."""

    def __init__(self, place: str) -> None:
        self.place, self.tries = place, 0
        self.since: float | None = None
        self.policy = _policy.get() or RetryPolicy()

    def reset(self) -> None:
        """Something came through: the next fault begins a new row. Raises: FetchStoppedError."""
        self.since, self.tries = None, 0
        if self.policy.stop.is_set():
            raise FetchStoppedError

    def wait(self, reason: str, retry_after_s: float = 0.0) -> None:
        """Waits before the next try, longer each time.

        Raises: HubUnavailableError when faults in a row have used up the budget; FetchStoppedError.
        """
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        budget = FAULT_BUDGET_S if self.policy.budget_s is None else self.policy.budget_s
        if not _answered.is_set():
            budget = min(budget, UNHEARD_S)
        left = self.since + budget - now
        self.tries += 1
        if left <= 0 and not _answered.is_set():
            raise HubUnavailableError(
                f"hub unavailable for {_minutes(now - self.since)} ({reason[:40]}, "
                f"{self.place[:30]}), it never answered; check the network; offline, set HF_HOME "
                "to a filled cache"
            )
        if left <= 0:
            raise HubUnavailableError(
                f"hub unavailable for {_minutes(now - self.since)} ({clipped(reason, 40)}, "
                f"{self.place[:40]}); {AGAIN}"
            )
        if self.tries == NOTE_AT_TRY and self.policy.note:
            self.policy.note(
                f"hub: {clipped(reason, 60)} from {self.place[:40]}; trying for {_minutes(left)} "
                "more"
            )
        wait = min(
            LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self.tries - 1, 10)
        ) * SystemRandom().uniform(0.5, 1.0)
        if self.policy.stop.wait(max(min(wait, left), retry_after_s)):
            raise FetchStoppedError


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def http_module() -> Any:
    """The module of the library's client: httpx, or a successor with the same names."""
    from huggingface_hub.utils import get_session

    return sys.modules[type(get_session()).__module__.partition(".")[0]]


def retrying_send(client: Any) -> Callable[..., Any]:
    """`client.send` with retries."""
    http, plain = http_module(), client.send

    def once_good(request: Any, retries: Retries, stream: bool, **options: Any) -> Any:
        while True:
            try:
                answer = plain(request, stream=stream, **options)
            except http.TransportError as error:
                _refuse_hopeless(http, error, retries.place)
                retries.wait(first_line(error))
                continue
            _answered.set()
            _refuse_paths(answer.headers, retries.place)
            if not stream:
                _refuse_other_commits(answer, retries.place)
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                return answer
            answer.close()
            retries.wait(
                f"HTTP {answer.status_code}", _retry_after_s(answer.headers.get("retry-after"))
            )

    def send(request: Any, *, stream: bool = False, **options: Any) -> Any:
        request.extensions["timeout"] = dict.fromkeys(
            ("connect", "read", "write", "pool"), TIMEOUT_S
        )
        if not _answered.is_set():
            request.extensions["timeout"]["connect"] = UNHEARD_TIMEOUT_S
        retries = Retries(request.url.host)
        if stream:  # packed bytes could not go on in the middle
            request.headers["Accept-Encoding"] = "identity"
        answer = once_good(request, retries, stream=stream, **options)
        retries.reset()
        if stream and answer.status_code == 200 and "content-encoding" not in answer.headers:

            def rest(start: int) -> Any:
                headers = {**request.headers, "Range": f"bytes={start}-"}
                part = client.build_request(request.method, request.url, headers=headers)
                part.extensions["timeout"] = request.extensions["timeout"]
                return once_good(part, retries, stream=True, **options)

            answer.stream = _unbroken(http, answer.stream, rest, retries)
        return answer

    send.retries = True  # type: ignore[attr-defined]
    return send


def _unbroken(http: Any, first: Any, rest: Callable[[int], Any], retries: Retries) -> Any:
    """A response body that is continued where it breaks off.

    rest(N): the response to a request for the bytes from N on.
    """

    class Body(http.SyncByteStream):
        part, skip = first, 0

        def __iter__(self) -> Iterator[bytes]:
            done = 0
            while True:
                try:
                    for piece in self.part:
                        new = piece[self.skip :]
                        self.skip -= len(piece) - len(new)
                        if new:
                            done += len(new)
                            retries.reset()
                            yield new
                    return
                except http.TransportError as error:
                    self.part.close()
                    retries.wait(first_line(error))
                    self.go_on(done)

        def go_on(self, done: int) -> None:
            answer = rest(done)
            self.part = answer.stream
            if answer.status_code == 206 and answer.headers.get("content-range", "").startswith(
                f"bytes {done}-"
            ):
                self.skip = 0
            elif answer.status_code == 200:
                self.skip = done
            else:
                answer.close()
                raise HubUnavailableError(
                    f"{retries.place[:60]} broke off, then HTTP {answer.status_code}; {AGAIN}"
                )

        def close(self) -> None:
            self.part.close()

    return Body()


def _refuse_hopeless(http: Any, error: Exception, place: str) -> None:
    if isinstance(error, (http.UnsupportedProtocol, http.LocalProtocolError)):
        raise UsageError(
            f"cannot ask {place[:60]} ({clipped(first_line(error), 60)}); check HF_ENDPOINT"
        ) from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise HubUnavailableError(
            f"the certificate of {place[:60]} is not trusted; set SSL_CERT_FILE"
        ) from error


def _refuse_paths(headers: Any, place: str) -> None:
    """Raise HubUnavailableError for a name in an answer that leads out of the cache.

    The library makes file names of these headers.
    """
    for header in ("etag", "x-linked-etag", "x-repo-commit"):
        name = headers.get(header, "").removeprefix("W/").strip('"')
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise HubUnavailableError(
                f"{place[:60]} answers with a path as {header}, which no hub does; check "
                "HF_ENDPOINT"
            )


def _refuse_other_commits(answer: Any, place: str) -> None:
    """Raise HubUnavailableError for an answer about a commit whose name is none.

    The library makes file names of it, too.
    """
    try:
        about = answer.json()
    except (ValueError, RecursionError):
        return
    if isinstance(about, dict) and "sha" in about and not is_commit(about["sha"]):
        raise HubUnavailableError(
            f"{place[:60]} answers with a commit that is none, which no hub does; check HF_ENDPOINT"
        )


def is_commit(revision: Any) -> bool:
    """Whether it is the whole name of a commit, as the hub gives it."""
    return isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision) is not None


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _retry_after_s(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), LONGEST_RETRY_AFTER_S)
    except ValueError:  # a date: our own waits do
        return 0.0
