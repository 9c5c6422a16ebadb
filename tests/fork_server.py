"""Many commands in little time: a process that has loaded torch and the program, and forks.

To load them takes three seconds, a small training less than one. The child of a fork is told its
arguments, environment and folder, and runs the program's own main(); several ranks are several
children, which find what torchrun tells them in their environment; or torchrun's own main() runs
in the child, and starts them as ever. What a library reads of the environment as it is loaded is
the server's: whoever sets that needs a process of its own.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakecuda.record import Happening, read, steps

LIMIT_S = 240
CLONE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code (of the first rank that has another than 0), and its words."""

    code: int
    stdout: str
    stderr: str
    path: Path = field(repr=False)  # of the record

    @property
    def record(self) -> list[Happening]:
        """What happened in rank 0."""
        return self.of_rank(0)

    def of_rank(self, rank: int) -> list[Happening]:
        """What happened there."""
        return read(self.path, rank)

    def json(self) -> Any:
        """What --json printed."""
        return json.loads(self.stdout)

    def steps(self) -> dict[int, list[Happening]]:
        """What happened in each training step."""
        return steps(self.record)


class Server:
    """The process that forks; close() it at the end."""

    def __init__(self, environment: Callable[..., dict[str, str]], folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.commands = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CLONE,
            env={**os.environ, **environment()},
        )

    def run(
        self,
        *arguments: object,
        folder: Path,
        ranks: int = 0,
        code: int | None = 0,
        variables: dict[str, str] | None = None,
        torchrun: bool = False,
        **device: object,
    ) -> Done:
        """`nanogpt ARGUMENTS` in `folder`; code: what it must return, None: anything.

        `-c PROGRAM` runs that in Python, as a notebook might; torchrun=True: these are torchrun's
        arguments.

        device: as tests/fakecuda/__init__.py lists it; variables: more of the environment.
        """
        self.commands += 1
        place = self.folder / str(self.commands)
        place.mkdir()
        record = Path(str(device.setdefault("record", place / "record.jsonl")))
        environment = {**os.environ, **self.environment(**device), **(variables or {})}
        request = {
            "arguments": [str(each) for each in arguments],
            "folder": str(folder),
            "output": str(place),
            "ranks": ranks,
            "torchrun": torchrun,
            "environment": environment,
            "number": self.commands,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        codes, late = self._answer()
        done = Done(
            next((each for each in codes if each), 0),
            (place / "stdout").read_text(),
            (place / "stderr").read_text(),
            record,
        )
        assert not late, f"{arguments} took longer than {LIMIT_S} s:\n{done.stderr[-3000:]}"
        assert code is None or done.code == code, (
            f"{arguments} returned {codes}:\n{done.stderr[-3000:]}"
        )
        return done

    def _answer(self) -> tuple[list[int], bool]:
        """That to the last request; an earlier one's was left by a test that was ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, codes, late = json.loads(line)
            if number == self.commands:
                return codes, late
        raise AssertionError("the process that forks has died")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


# --- in the process -------------------------------------------------------------------------------


def serve() -> None:
    """Answer each request on standard input, a line of JSON.

    With its number, the exit codes of its ranks, and whether they had to be ended.
    """
    load()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps([request["number"], *_run(request)]) + "\n")
        answers.flush()


def load() -> None:
    """What a command would load itself. Nothing may start a thread: the children would lack it."""
    import torch._dynamo.backends.common
    import torch._inductor.compiler_bisector
    import torch.distributed.fsdp
    import torch.distributed.run
    import torch.distributed.tensor
    import torch.nn.attention.flex_attention  # noqa: F401

    import nanogpt_dist.api.models
    import nanogpt_dist.api.training
    import nanogpt_dist.evaluation.report
    import nanogpt_dist.training.loop  # noqa: F401


def _run(request: dict[str, Any]) -> tuple[list[int], bool]:
    return _codes(fork_ranks(request))


def fork_ranks(
    request: dict[str, Any], before: Callable[[int], None] = lambda rank: None
) -> list[int]:
    """Start a request's command, in a fork of this process for each rank; their process ids.

    before: called there with the rank, and may change what the command will find.
    """
    ranks = request["ranks"]
    children = []
    port = request.get("port") or free_port()
    for rank in range(max(1, ranks)):
        variables = dict(request["environment"])
        if ranks:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        child = os.fork()
        if child == 0:
            _be_the_command(request, variables, before, rank)
        children.append(child)
    return children


def _codes(children: list[int]) -> tuple[list[int], bool]:
    """Wait for them; -N: killed by signal N. Where one fails the others have 30 s more.

    And whether it took all of LIMIT_S.
    """
    codes: dict[int, int] = {}
    last = deadline = time.monotonic() + LIMIT_S
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
                    if codes[child]:
                        deadline = min(deadline, time.monotonic() + 30)
        if time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, 9)  # what it has started, too
        time.sleep(0.005)
    return [codes[child] for child in children], time.monotonic() > last


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _be_the_command(
    request: dict[str, Any], variables: dict[str, str], before: Callable[[int], None], rank: int
) -> None:
    """Run the command in this child of a fork, and end it."""
    code: Any = 1 if request["torchrun"] else 70
    try:
        os.setpgid(0, 0)
        sys.orig_argv = [sys.executable, "-m", "nanogpt_dist", *request["arguments"]]
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(request["folder"])
        for descriptor, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            path = os.path.join(request["output"], name)
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(opened, descriptor)
        sys.argv = ["nanogpt", *request["arguments"]]
        before(rank)
        if "FAKECUDA" in variables:
            from tests.fakecuda import device, record

            record.happenings.clear()
            device.configure()
        if "FAKECUDA_BRANCHES" in variables:
            from tests.fakecuda import branches

            branches.watch(Path(variables["FAKECUDA_BRANCHES"]))
        if request["arguments"][:1] == ["-c"]:
            exec(request["arguments"][1], {})
            code = 0
        elif request["torchrun"]:
            from torch.distributed import run

            run.main()
            code = 0
        else:
            from nanogpt_dist import __main__ as command

            sys.modules["__main__"] = command  # which worker processes import, not this module
            command.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
