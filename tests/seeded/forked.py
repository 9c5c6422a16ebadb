"""pytest in forks of a process that has loaded the libraries, and no module of ours.

To load torch takes three seconds, a test mostly less than one. A fork imports the tree's modules
as they are then, so that a file may be broken between two runs; so do the processes that a test
starts.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launch import processes
from tests.seeded.tree import PACKAGES, environment

LIBRARIES = (
    *("hypothesis", "pydantic", "safetensors.torch", "typer", "torch._dynamo.backends.common"),
    *("torch.distributed.fsdp", "torch.distributed.tensor"),
)
MARK = "NANOGPT_SEEDED"  # in the environment of all that a run has started
Calls = set[tuple[str, int]]  # of functions: file in the tree, and first line


@dataclass
class Outcome:
    """How a run of pytest ended: its exit code, None where it took too long.

    tests: of each test "passed", "failed" or "skipped", and its seconds. calls: with profile, which
    functions of the tree each has called in its own process.
    """

    code: int | None
    seconds: float
    output: str
    tests: dict[str, tuple[str, float]] = field(default_factory=dict)
    calls: dict[str, Calls] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """The tests that failed."""
        return [name for name, (how, _) in self.tests.items() if how == "failed"]


class Pytest:
    """Runs tests in `tree`; close() it at the end. folder: what they write; emptied each time."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        self.runs = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.seeded.forked"],
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: Sequence[str],
        limit_s: float,
        order: Sequence[str] = (),
        profile: bool = False,
    ) -> Outcome:
        """`pytest ARGUMENTS`, ended after limit_s seconds, with all that it has started.

        order: tests that are to be run, in this order; empty: all, in theirs.
        """
        self.runs += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        mark = f"{self.process.pid}-{self.runs}"
        request = {
            "arguments": [*arguments, f"--basetemp={self.folder / 'tests'}"],
            "order": list(order),
            "profile": profile,
            "limit_s": limit_s,
            "output": str(self.folder / "output"),
            "report": str(self.folder / "report.json"),
            "mark": mark,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        processes.send(signal.SIGKILL, processes.marked(MARK, mark))
        report: dict[str, Any] = {"tests": {}, "calls": {}}
        with contextlib.suppress(OSError, ValueError):  # it was ended, or has crashed
            report = json.loads((self.folder / "report.json").read_text())
        return Outcome(
            code,
            seconds,
            (self.folder / "output").read_text(errors="replace"),
            {name: (how, took) for name, (how, took) in report["tests"].items()},
            {name: set(map(tuple, calls)) for name, calls in report["calls"].items()},
        )

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


# --- in the process -------------------------------------------------------------------------------


def serve() -> None:
    """Answer each request on standard input, a line of JSON, with exit code and seconds."""
    _load_libraries()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_pytest(request)
        code = _wait(child, start + request["limit_s"])
        answers.write(json.dumps([code, time.monotonic() - start]) + "\n")
        answers.flush()


def _load_libraries() -> None:
    """What the tests load of others. Nothing may start a thread: the children would lack it."""
    for name in LIBRARIES:
        importlib.import_module(name)


def _wait(child: int, deadline: float) -> int | None:
    """Its exit code; None: ended at the deadline, or since whoever asked is gone."""
    parent = os.getppid()
    while time.monotonic() < deadline and os.getppid() == parent:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be_pytest(request: Mapping[str, Any]) -> None:
    """Run the tests in this child of a fork, and end it."""
    code = 70
    try:
        os.setpgid(0, 0)
        for descriptor, name in ((0, os.devnull), (1, request["output"]), (2, request["output"])):
            opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(opened, descriptor)
        os.environ[MARK] = request["mark"]
        for name in [each for each in sys.modules if each.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        plugin = Plugin(Path.cwd(), request["order"], request["profile"])
        common = ["-p", "no:cacheprovider", "-p", "no:xdist", "--durations=0", "--tb=short"]
        code = int(pytest.main([*common, *request["arguments"]], plugins=[plugin]))
        calls = {name: sorted(called) for name, called in plugin.calls.items()}
        with open(request["report"], "w", encoding="utf-8") as file:
            json.dump({"tests": plugin.tests, "calls": calls}, file)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Plugin:
    """Orders the tests, and notes how each ended, how long it took, and what it called."""

    def __init__(self, tree: Path, order: Sequence[str], profile: bool) -> None:
        self.prefix, self.order, self.profile = f"{tree}/", order, profile
        self.tests: dict[str, tuple[str, float]] = {}
        self.calls: dict[str, Calls] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave those of `order`, in that order."""
        if self.order:
            places = {name: at for at, name in enumerate(self.order)}
            items[:] = sorted(
                (item for item in items if item.nodeid in places),
                key=lambda item: places[item.nodeid],
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note the functions that are called in the main thread meanwhile."""
        if not self.profile:
            return (yield)
        called: Calls = set()

        def see(frame: Any, event: str, _: Any) -> None:
            if event == "call":
                called.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

        sys.setprofile(see)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            self.calls[item.nodeid] = {
                (name.removeprefix(self.prefix), line)
                for name, line in called
                if name.startswith(self.prefix)
            }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of set-up, test and end: the worst, and the sum of their seconds."""
        how, seconds = self.tests.get(report.nodeid, ("passed", 0.0))
        how = how if report.outcome == "passed" else report.outcome
        self.tests[report.nodeid] = (how, seconds + report.duration)


if __name__ == "__main__":
    serve()
