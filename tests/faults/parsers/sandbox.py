"""Calls in a child that may neither write elsewhere, read elsewhere, nor run anything, with limits.

The child takes one case after the other and says of each how it went; where it dies, or does not
come back, that is how the case went, and another child takes the rest.
"""

import errno
import json
import os
import resource
import select
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import Exit, NanogptError, explain
from tests.conftest import CLONE
from tests.faults.parsers.formats import Parser, write_case

CPU_S = 20  # of one case
SILENT_S = 60  # of one case that computes nothing: it waits for something
MEMORY = 1 << 30  # bytes that a case may add
ADDRESSES = 6 << 30  # bytes of address space that it may add
CASES = 500  # of one child
OUTSIDE = ("/dev/null", "/dev/urandom", "/proc/", "/sys/", "/usr/lib/", "/usr/share/zoneinfo/")
OUTSIDE += tuple({sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(CLONE)})
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link"),
    *("os.symlink", "os.truncate", "os.utime", "shutil.rmtree", "os.mkfifo"),
}
RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "socket.bind"),
    *("pickle.find_class", "ctypes.dlopen", "code.__new__"),
}


@dataclass(frozen=True)
class Fault:
    """What must not have come out of a case."""

    parser: str
    seed: int
    wrong: str  # which files
    what: str

    def __str__(self) -> str:
        replay = f"--only {self.parser} --case {self.seed}"
        return f"{replay}: {self.what} ({self.wrong})"


class Guard:
    """An audit hook: what was done that no reader of files may do.

    It looks while `folder` is set, which is where the case's files are.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            self._look_at(arguments[0], event, bool((arguments[2] or 0) & WRITES))
        elif event in CHANGES:
            # relative to a folder that is open, the last argument: shutil.rmtree() goes that way
            paths = arguments[1:2] if event == "os.symlink" else arguments[:2]
            for path in paths if arguments[-1] in (-1, None) else ():
                if isinstance(path, str | bytes):
                    self._look_at(path, event, True)
        elif event in RUNS or (event == "exec" and not _in_an_import()):
            self.found.append(f"{event} {str(arguments)[:80]}")

    def _look_at(self, path: str | bytes, event: str, writes: bool) -> None:
        place = os.path.abspath(os.fsdecode(path))
        if (place + "/").startswith(f"{self.folder}/"):
            return
        allowed = place in OUTSIDE[:2] if writes else place.startswith(OUTSIDE)
        if not allowed:
            self.found.append(f"{event} {place[:80]}")
            if writes:  # nobody's machine is to suffer from what is found
                raise PermissionError(errno.EACCES, "outside of the case's folder", place)


def _in_an_import() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def run_cases(
    parser: Parser, good: dict[str, bytes], seeds: Sequence[int], until: float
) -> Iterator[Fault | None]:
    """Of each seed what was wrong, None where all was well; ends at `until` of the clock.

    Raises RuntimeError where a case cannot be made, or looked at.
    """
    waiting = list(seeds)
    while waiting and time.monotonic() < until:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(ours)
            _be_the_child(parser, good, waiting[:CASES], theirs, until)
        os.close(theirs)
        begun, buffer = None, b""
        while True:
            if not select.select([ours], [], [], SILENT_S)[0]:
                os.kill(child, signal.SIGKILL)
                break
            data = os.read(ours, 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "broken" in said:
                    raise RuntimeError(said["broken"])
                begun = said if "begun" in said else None
                if begun is None:
                    waiting.remove(said["seed"])
                    fault = said["fault"]
                    yield Fault(parser.name, said["seed"], said["wrong"], fault) if fault else None
        os.close(ours)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if begun is not None:
            waiting.remove(begun["begun"])
            ends = {-signal.SIGPROF: f"more than {CPU_S} s of CPU", -9: f"{SILENT_S} s of silence"}
            what = ends.get(code, f"the process ended with {code}")
            yield Fault(parser.name, begun["begun"], begun["wrong"], what)


def _be_the_child(
    parser: Parser, good: dict[str, bytes], seeds: list[int], pipe: int, until: float
) -> None:
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
        limit_this_process()
        guard = Guard()
        for seed in seeds:
            if time.monotonic() > until:
                break
            for said in run_case(parser, good, seed, guard):
                os.write(pipe, json.dumps(said).encode() + b"\n")
    except BaseException:
        os.write(pipe, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
    finally:
        os._exit(0)


def limit_this_process() -> None:
    """Of memory, of files, of what signals do; and its home."""
    os.environ["HOME"] = f"{sys.prefix}/home"  # nothing, and no secrets in it
    sys.dont_write_bytecode = True
    size = _status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def run_case(
    parser: Parser, good: dict[str, bytes], seed: int, guard: Guard, show: bool = False
) -> Iterator[dict[str, Any]]:
    """Says that a case begins, and how it went."""
    folder = Path(tempfile.mkdtemp(prefix="case-"))
    place = tempfile.tempdir
    try:
        wrong = write_case(parser, good, folder, seed)
        yield {"begun": seed, "wrong": wrong}
        tempfile.tempdir = str(folder)
        _reset_peak()
        before, fault = _status("VmRSS"), ""
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        guard.found, guard.folder = [], str(folder)
        try:
            parser.read(folder)
        except BaseException as error:
            ours = isinstance(error, NanogptError) or explain(error)[0] != Exit.BUG
            fault = "" if ours else _told(error)
            if show:
                traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            guard.folder, tempfile.tempdir = None, place
        added = _status("VmHWM") - before
        if added > MEMORY:
            fault = fault or f"{added / 1e6:,.0f} MB of memory"
        fault = fault or "; ".join(guard.found[:3])
        yield {"seed": seed, "wrong": wrong, "fault": fault}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(each.filename).name}:{each.lineno}" for each in last)
    return f"{type(error).__name__}: {str(error)[:160]}{where}"


def _status(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    with open("/proc/self/status") as file:
        found = next(line for line in file if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


def _reset_peak() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
