"""Patience with the hub: every request of its libraries is sent again until faults in a row have
lasted too long.

The libraries retry some faults, at some places, for half a minute. Here it is done once, below
them, where all their requests pass: the `send` of the client that they share. A body that breaks
off goes on at the byte where it broke.
"""

import errno
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom  # the run's own generator stays as it is
from typing import Any, Literal
from urllib.parse import urlsplit

from nanogpt_dist.errors import (
    HubUnavailableError,
    MissingInputError,
    NanogptError,
    StorageError,
    UsageError,
    clipped,
)

FAULT_BUDGET_S = 300.0  # of faults in a row; a byte that arrives ends the row
# the same, where the hub has never answered this process: then there is no network, most likely
UNHEARD_S = 20.0
UNHEARD_TIMEOUT_S = 10.0  # to connect then
TIMEOUT_S = 30.0  # to connect, and between two pieces of a body
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# the hub counts requests in windows of 5 minutes, which is our patience
LONGEST_RETRY_AFTER_S = 290.0
NOTE_AT_TRY = 3
WRONG_BYTES_TRIES = 3
AGAIN = "run the same command again: it fetches only what is missing"


Kind = Literal["dataset", "model"]


class FetchStoppedError(Exception):
    """Nobody waits for this download any more."""


class WrongBytesError(HubUnavailableError):
    """The hub serves other bytes than it says a file has."""


@dataclass(frozen=True)
class Listener:
    """For whom requests are made. stop: set when nobody waits any more; note: is told that there is
    trouble; budget_s: how long faults in a row are borne; None: FAULT_BUDGET_S.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    note: Callable[[str], None] | None = None
    budget_s: float | None = None


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_wrapping = threading.Lock()
_answered = threading.Event()  # whether any request of this process was ever answered


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Requests of the block, in this thread, are made for `listener`."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


class Faults:
    """Faults in a row of one request, and the waits between its tries."""

    def __init__(self, place: str) -> None:
        self.place, self.tries = place, 0
        self.since: float | None = None
        self.listener = _listener.get() or Listener()

    def over(self) -> None:
        """Something came through. Raises FetchStoppedError."""
        self.since, self.tries = None, 0
        if self.listener.stop.is_set():
            raise FetchStoppedError

    def bear(self, reason: str, retry_after_s: float = 0.0) -> None:
        """Waits before the next try. Raises HubUnavailableError when the row is too long,
        FetchStoppedError.
        """
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        budget = FAULT_BUDGET_S if self.listener.budget_s is None else self.listener.budget_s
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
        if self.tries == NOTE_AT_TRY and self.listener.note:
            self.listener.note(
                f"hub: {clipped(reason, 60)} from {self.place[:40]}; trying for {_minutes(left)} "
                "more"
            )
        wait = min(
            LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self.tries - 1, 10)
        ) * SystemRandom().uniform(0.5, 1.0)
        if self.listener.stop.wait(max(min(wait, left), retry_after_s)):
            raise FetchStoppedError


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def hub_library() -> Any:
    """The module huggingface_hub, silent, with its client made patient. Call it before each use.

    Raises UsageError for an address or a token in the environment with which nothing can be asked.
    """
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        os.environ.setdefault(name, "1")  # read when the library is imported
    _refuse_address(os.environ.get("HF_ENDPOINT"))  # on some the import fails
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars, get_session, logging

    disable_progress_bars()
    logging.set_verbosity_error()
    _refuse_token(huggingface_hub.get_token())
    with _wrapping:
        client: Any = get_session()
        if not hasattr(client.send, "retries"):
            client.send = _patient(client)
    return huggingface_hub


def _refuse_address(endpoint: str | None) -> None:
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, say
        good = False
    if not good or not re.fullmatch("[!-~]+", endpoint):
        raise UsageError(
            f"HF_ENDPOINT {endpoint[:60]!r} is no address; type: unset HF_ENDPOINT, or give "
            "https://HOST"
        )


def _refuse_token(token: str | None) -> None:
    # as a header may have it; the token itself is nobody's to see
    if token and not re.fullmatch("[!-~]+", token):
        place = next(place for place, char in enumerate(token, 1) if not "!" <= char <= "~")
        raise UsageError(
            f"the hub's token has a blank or no ASCII at character {place}; set HF_TOKEN anew, "
            "unset it, or type: hf auth login"
        )


def datasets_library() -> Any:
    """The module datasets, silent; what it fetches goes through the same patient client."""
    hub_library()
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to another host, for statistics
    return datasets


def _http() -> Any:
    """The module that the library's client comes from: httpx, or a successor of it with the same
    names.
    """
    from huggingface_hub.utils import get_session

    return sys.modules[type(get_session()).__module__.partition(".")[0]]


def _patient(client: Any) -> Callable[..., Any]:
    """`client.send` with patience."""
    http, plain = _http(), client.send

    def once_good(request: Any, faults: Faults, **options: Any) -> Any:
        while True:
            try:
                answer = plain(request, **options)
            except http.TransportError as error:
                _refuse_hopeless(http, error, faults.place)
                faults.bear(_said(error))
                continue
            _answered.set()
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                return answer
            answer.close()
            faults.bear(
                f"HTTP {answer.status_code}", _retry_after_s(answer.headers.get("retry-after"))
            )

    def send(request: Any, *, stream: bool = False, **options: Any) -> Any:
        request.extensions["timeout"] = dict.fromkeys(
            ("connect", "read", "write", "pool"), TIMEOUT_S
        )
        if not _answered.is_set():
            request.extensions["timeout"]["connect"] = UNHEARD_TIMEOUT_S
        faults = Faults(request.url.host)
        if stream:  # packed bytes could not go on in the middle
            request.headers["Accept-Encoding"] = "identity"
        answer = once_good(request, faults, stream=stream, **options)
        faults.over()
        if stream and answer.status_code == 200 and "content-encoding" not in answer.headers:

            def rest(start: int) -> Any:
                headers = {**request.headers, "Range": f"bytes={start}-"}
                part = client.build_request(request.method, request.url, headers=headers)
                part.extensions["timeout"] = request.extensions["timeout"]
                return once_good(part, faults, stream=True, **options)

            answer.stream = _unbroken(http, answer.stream, rest, faults)
        return answer

    send.retries = True  # type: ignore[attr-defined]
    return send


def _unbroken(http: Any, first: Any, rest: Callable[[int], Any], faults: Faults) -> Any:
    """A body whose broken end is fetched again. rest(N): the answer to a request for the bytes from
    N on.
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
                            faults.over()
                            yield new
                    return
                except http.TransportError as error:
                    self.part.close()
                    faults.bear(_said(error))
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
                    f"{faults.place[:60]} broke off, then HTTP {answer.status_code}; {AGAIN}"
                )

        def close(self) -> None:
            self.part.close()

    return Body()


def _refuse_hopeless(http: Any, error: Exception, place: str) -> None:
    if isinstance(error, (http.UnsupportedProtocol, http.LocalProtocolError)):
        raise UsageError(
            f"cannot ask {place[:60]} ({clipped(_said(error), 60)}); check HF_ENDPOINT"
        ) from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise HubUnavailableError(
            f"the certificate of {place[:60]} is not trusted; set SSL_CERT_FILE"
        ) from error


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _retry_after_s(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), LONGEST_RETRY_AFTER_S)
    except ValueError:  # a date: our own waits do
        return 0.0


@contextmanager
def hub_errors(repo: str, revision: str | None = None, kind: Kind = "dataset") -> Iterator[None]:
    """Turns what the libraries raise in the block into errors of ours, in one line each."""
    hub_library()
    from huggingface_hub import constants, errors

    what = f"{kind} {repo[:60]}"
    try:
        yield
    except (NanogptError, FetchStoppedError):
        raise
    except errors.HFValidationError as error:
        raise UsageError(
            f"{repo[:60]!r} is no name of a {kind}; give OWNER/NAME as it stands on the hub"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(
            f"{what} has no revision {str(revision)[:50]}; give a branch, a tag or a commit"
        ) from error
    except (errors.RepositoryNotFoundError, errors.DisabledRepoError) as error:
        raise denied(repo, kind) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if not constants.HF_HUB_OFFLINE:  # an answer that no hub would give
            raise HubUnavailableError(
                f"{what}: {clipped(_said(error), 60)}; check HF_ENDPOINT; {AGAIN}"
            ) from error
        raise HubUnavailableError(
            f"{what} is not all in the cache, and HF_HUB_OFFLINE is set; unset it, or check HF_HOME"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise denied(repo, kind) from error
        raise HubUnavailableError(
            f"HTTP {error.response.status_code} for {what}; {AGAIN}"
        ) from error
    except _http().HTTPError as error:
        raise HubUnavailableError(f"{clipped(_said(error), 60)}: {what}; {AGAIN}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # a proxy's page, say
        raise HubUnavailableError(
            f"no hub's answer for {what}; check HF_ENDPOINT and proxies; {AGAIN}"
        ) from error
    except OSError as error:
        if error.errno is None:  # the library's own: sizes that differ
            raise HubUnavailableError(f"{clipped(_said(error), 60)}: {what}; {AGAIN}") from error
        room = (
            "make room there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check HF_HOME and the disk"
        )
        where = str(error.filename or "the cache of the hub")[-60:]
        raise StorageError(
            f"{where}: {error.strerror}; {room}, then run the same command again"
        ) from error


def denied(repo: str, kind: Kind = "dataset") -> MissingInputError:
    """What to say where the hub does not let us in, for whatever reason."""
    what = f"no {kind} {repo[:60]} on the hub"
    return MissingInputError(
        f"{what}, or it is private or gated; check the name or type: hf auth login"
    )


def fetch(
    repo: str,
    commit: str,
    name: str,
    folder: Path | None,
    is_good: Callable[[Path], bool],
    kind: Kind = "dataset",
) -> Path:
    """A file from the cache, or from the hub into it. folder: a cache of its own; None: the user's.

    What is not `is_good` is removed and fetched again. Raises HubUnavailableError, after some tries
    WrongBytesError, which is one, MissingInputError, StorageError.
    """
    hub = hub_library()
    with hub_errors(repo, commit, kind):
        for _ in range(WRONG_BYTES_TRIES):
            path = Path(
                hub.hf_hub_download(
                    repo, name, repo_type=kind, revision=commit, cache_dir=folder or None
                )
            )
            if is_good(path):
                return path
            discard(path)
    raise WrongBytesError(
        f"hub serves wrong bytes for {name[-80:]} of {repo[:50]}; run the same command later"
    )


def is_blob(path: Path, git_hash: str) -> bool:
    """Whether a file has the bytes that git calls by this hash. Raises OSError."""
    data = path.read_bytes()
    return (
        hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == git_hash
    )


def discard(path: Path) -> None:
    """Remove a file of a cache: the link that has its name, and its target. Raises OSError."""
    target = path.resolve()
    path.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
