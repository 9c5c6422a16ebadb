"""The hub through its own libraries: their errors as ours, and files with checked hashes."""

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from nanogpt_dist.errors import (
    HubUnavailableError,
    MissingInputError,
    NanogptError,
    StorageError,
    UsageError,
    clipped,
    without_passwords,
)
from nanogpt_dist.hub_retries import (
    AGAIN,
    FetchStoppedError,
    first_line,
    http_module,
    retrying_send,
)

WRONG_BYTES_TRIES = 3

Kind = Literal["dataset", "model"]

_wrapping = threading.Lock()


class WrongBytesError(HubUnavailableError):
    """The hub serves other bytes than it says a file has."""


def hub_library() -> Any:
    """The module huggingface_hub, silent, and with retries. Call it before each use.

    Raises: UsageError for an address or a token in the environment that no request can use.
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
            client.send = retrying_send(client)
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
            f"HF_ENDPOINT {without_passwords(endpoint)[:60]!r} is no address; type: unset "
            "HF_ENDPOINT, or give https://HOST"
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
    """The module datasets, silent; its downloads go through the same client."""
    hub_library()
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to another host, for statistics
    return datasets


@contextmanager
def hub_errors(repo: str, revision: str | None = None, kind: Kind = "dataset") -> Iterator[None]:
    """Turns what the libraries raise in the block into errors of ours, one line each."""
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
                f"{what}: {clipped(first_line(error), 60)}; check HF_ENDPOINT; {AGAIN}"
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
    except http_module().HTTPError as error:
        raise HubUnavailableError(f"{clipped(first_line(error), 60)}: {what}; {AGAIN}") from error
    except OSError as error:
        if error.errno is None:  # the library's own: sizes that differ
            raise HubUnavailableError(
                f"{clipped(first_line(error), 60)}: {what}; {AGAIN}"
            ) from error
        room = (
            "make room there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check HF_HOME and the disk"
        )
        where = str(error.filename or "the cache of the hub")[-60:]
        raise StorageError(
            f"{where}: {error.strerror}; {room}, then run the same command again"
        ) from error

    # a proxy's page, or JSON that is none of the hub's: the library looks for keys in it
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise HubUnavailableError(
            f"no hub's answer for {what} ({type(error).__name__}); check HF_ENDPOINT and proxies; "
            f"{AGAIN}"
        ) from error


def denied(repo: str, kind: Kind = "dataset") -> MissingInputError:
    """The error where the hub does not let us in, for whatever reason."""
    what = f"no {kind} {repo[:60]} on the hub"
    return MissingInputError(
        f"{what}, or it is private or gated; check the name or type: hf auth login"
    )


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository on the hub, at one commit."""

    repo: str
    commit: str
    name: str
    kind: Kind = "dataset"


def download(file: RepoFile, is_good: Callable[[Path], bool], cache: Path | None = None) -> Path:
    """The path of a file in a cache of the hub's, downloaded where it is missing.

    A file that is not `is_good` is removed and downloaded again. cache: None is the user's own.

    Raises: HubUnavailableError; WrongBytesError, a kind of it, after some tries; MissingInputError;
    StorageError.
    """
    hub = hub_library()
    with hub_errors(file.repo, file.commit, file.kind):
        for _ in range(WRONG_BYTES_TRIES):
            path = Path(
                hub.hf_hub_download(
                    file.repo,
                    file.name,
                    repo_type=file.kind,
                    revision=file.commit,
                    cache_dir=cache or None,
                )
            )
            if is_good(path):
                return path
            remove_from_cache(path)
    raise WrongBytesError(
        f"hub serves wrong bytes for {file.name[-80:]} of {file.repo[:50]}; run the same command "
        "later"
    )


def is_blob(path: Path, git_hash: str) -> bool:
    """Whether a file has the bytes of this git hash. Raises: OSError."""
    data = path.read_bytes()
    return (
        hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == git_hash
    )


def remove_from_cache(path: Path) -> None:
    """Removes a file from a cache: the link of that name, and its target. Raises: OSError."""
    target = path.resolve()
    path.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
