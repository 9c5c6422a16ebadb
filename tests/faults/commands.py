"""Commands that a try starts, disturbs and ends: forks of this process, which has loaded torch."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tests import fork_server

WAIT_S = 90


@dataclass
class Started:
    """A command under way, as one process for each rank."""

    folder: Path
    pids: list[int]
    store: TCPStore | None = None
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Whether all ranks have ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float = WAIT_S) -> int:
        """The exit code of the first rank that has another than 0; -N: killed by signal N."""
        deadline = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no end after {seconds} s: {self.stderr[-1000:]}")
            time.sleep(0.005)
        return next((self.codes[rank] for rank in sorted(self.codes) if self.codes[rank]), 0)

    def send(self, number: int, rank: int | None = None) -> None:
        """Send a signal to the processes of `rank`, or of all."""
        for each, pid in enumerate(self.pids):
            if rank in (None, each):
                with suppress(ProcessLookupError):
                    os.killpg(pid, number)

    def kill(self) -> None:
        """End all at once."""
        self.send(signal.SIGKILL)
        while not self.poll():
            time.sleep(0.002)

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has said beside."""
        return (self.folder / "stderr").read_text(errors="replace")


def start(
    *arguments: object,
    folder: Path,
    ranks: int = 0,
    variables: dict[str, str] | None = None,
    before: Callable[[int], None] = lambda rank: None,
) -> Started:
    """Start `nanogpt ARGUMENTS` in `folder`.

    before: called with its rank in each process of the command, and may change what that will find.
    """
    number = len(list(folder.glob(".output-*")))
    output = folder / f".output-{number}"
    output.mkdir()
    for name in ("stdout", "stderr"):
        (output / name).touch()
    request: dict[str, Any] = {
        "arguments": [str(each) for each in arguments],
        "folder": str(folder),
        "output": str(output),
        "ranks": ranks,
        "torchrun": False,
        "environment": {**os.environ, **(variables or {})},
    }
    if not ranks:
        pids, store = fork_server.fork_ranks(request, before), None
    else:  # the store in which they meet is the launcher's, as torchrun has it
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = request["port"] = listener.getsockname()[1]  # nobody else can take it meanwhile
        request["environment"] |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

        def in_the_rank(rank: int) -> None:
            listener.close()
            before(rank)

        pids = fork_server.fork_ranks(request, in_the_rank)
        fd = listener.detach()
        store = TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=fd
        )
    for pid in pids:
        with suppress(OSError):  # the child does it, too: whoever is first
            os.setpgid(pid, pid)
    return Started(output, pids, store)


def run(
    *arguments: object,
    folder: Path,
    ranks: int = 0,
    code: int | None = 0,
    variables: dict[str, str] | None = None,
    before: Callable[[int], None] = lambda rank: None,
) -> Started:
    """Run `nanogpt ARGUMENTS` to its end; code: what it must return, None: anything."""
    done = start(*arguments, folder=folder, ranks=ranks, variables=variables, before=before)
    found = done.wait()
    assert code is None or found == code, f"{arguments} returned {found}: {done.stderr[-1000:]}"
    return done
