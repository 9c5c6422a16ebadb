"""A hub in trouble: errors, connections that break, wrong bytes of the right length."""

import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanogpt_dist import hub_retries
from nanogpt_dist.errors import HubUnavailableError
from tests.faults import damage, prepared
from tests.faults.row import Row
from tests.prepare.hub_repos import make_openwebtext
from tests.prepare.hub_server import Fault, Hub, hub

REPO = "Skylion007/openwebtext"


@prepared.once
def repository(folder: Path) -> None:
    """FOLDER: a repository of three files in LFS."""
    make_openwebtext(folder, documents_per_file=50)


@contextmanager
def client(server: Hub, folder: Path, budget_s: float) -> Iterator[None]:
    """This process asks `server`, and little time is lost between its tries.

    Its libraries read the environment as they are loaded: it is to be new.
    """
    import sys

    assert "huggingface_hub" not in sys.modules, "the libraries know another hub"
    os.environ |= server.environment(folder / "home")
    hub_retries.FIRST_WAIT_S, hub_retries.FAULT_BUDGET_S = 0.02, budget_s
    hub_retries.TIMEOUT_S = 0.5
    yield


def fetch(folder: Path | None) -> list[Path]:
    """The files of the repository, listed and fetched as `prepare` does; their hashes are right."""
    from prepare.sources.hub import list_files
    from prepare.sources.prefetch import Fetcher

    files = list_files(REPO, None, "train")
    with Fetcher(files, folder) as fetcher:
        paths = [fetcher.path(index) for index in range(len(files.files))]
    for path, file in zip(paths, files.files, strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256, f"{file.name} is wrong"
    return paths


def any_fault(choose: random.Random, times: int | None) -> Fault:
    """Trouble with a file, with the list of them, or with anything."""
    path = choose.choice(
        [
            f"*train-0000{choose.randrange(3)}*",
            "/lfs/*",
            "*/tree/*",
            "*/paths-info/*",
            "*",
            "/api/*",
        ]
    )
    method = choose.choice(["GET", "GET", "GET", "HEAD", "POST"])
    kind = choose.choice(["status", "status", "reset", "cut", "stall"])
    status = choose.choice([500, 502, 503, 504, 429, 408])
    wait_s = 0 if status == 429 else None
    return Fault(kind, path, times, method, status, wait_s, stall_s=0.7)  # type: ignore[arg-type]


def in_trouble(choose: random.Random, folder: Path) -> None:
    """Some faults that pass, or one that does not: then the rest comes when the hub is well."""
    kept = choose.choice([None, folder / "files"])
    if choose.random() < 0.6:
        faults = [
            any_fault(choose, choose.choice([1, 1, 2, 4])) for _ in range(choose.randrange(1, 5))
        ]
        with hub(repository(), faults=faults) as server, client(server, folder, 60):
            fetch(kept)
        return
    missing = choose.randrange(3)
    for_good = any_fault(choose, None)
    for_good.path, for_good.method = f"/lfs/*train-0000{missing}*", "GET"
    with hub(repository()) as server:
        server.faults.append(for_good)
        with client(server, folder, 0.5):
            damage.refused(
                lambda: fetch(kept),
                "hub unavailable for",
                "run the same command again",
                kind=HubUnavailableError,
            )
            server.faults.clear()
            server.forget()
            fetch(kept)
        for number in range(missing):
            sent = server.bytes_sent(f"*train-0000{number}*")
            assert sent == 0, f"file {number} was fetched twice"


def wrong_bytes(choose: random.Random, folder: Path) -> None:
    """The hub flips a bit of a file, once or for good."""
    times = choose.choice([1, 2, None])
    path = f"/lfs/*train-0000{choose.randrange(3)}*"
    kept = choose.choice([None, folder / "files"])
    with hub(repository(), faults=[Fault("corrupt", path, times)]) as server:
        with client(server, folder, 60):
            if times is None:
                damage.refused(
                    lambda: fetch(kept),
                    "serves wrong bytes for plain_text/train-0000",
                    kind=HubUnavailableError,
                )
                assert server.asked(path) == 3
                server.faults.clear()
            fetch(kept)
        assert not any(fault.times for fault in server.faults), "the fault has not happened"
    shutil.rmtree(folder / "home")


ROWS = [
    Row(
        number=38,
        fault="the hub answers 5xx, resets, cuts, stalls, a while or for good",
        holds="right files in the end; for good: exit 69, and only what is missing comes later",
        goal=100,
        attempt=in_trouble,
        short=1,
    ),
    Row(
        number=39,
        fault="the hub serves wrong bytes of the right length",
        holds="never taken: fetched again, three times at most, then exit 69",
        goal=100,
        attempt=wrong_bytes,
        short=1,
    ),
]
