"""A campaign, not a test: one training on two hosts, whose cable is cut, and that come and go.
Needs root and `ip`.

    python tests/faults/hosts.py

The hosts are two network namespaces on this machine, with names that do not resolve. Prints one
JSON object.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from launch import processes
from tests.conftest import CLONE, TINY, command
from tests.faults.trainings import prepare

MEETING = "192.0.2.1:29511"
MARK = "NANOGPT_HOSTS"


def missing() -> str | None:
    """What this machine lacks; None if nothing."""
    if os.geteuid():
        return "needs root"
    if shutil.which("ip") is None:
        return "needs ip (Debian: iproute2)"
    tried = subprocess.run(
        ["ip", "netns", "add", f"ngt-{os.getpid()}"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"needs network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"ngt-{os.getpid()}"], check=True)
    return None


class Hosts:
    """Two hosts, 192.0.2.1 and 192.0.2.2, joined by a cable; both see this machine's disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"ng{os.getpid()}a", f"ng{os.getpid()}b"]

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def up(self) -> None:
        for name in self.names:
            self.ip("netns", "add", name)
        first, second = self.names
        self.ip(
            "link",
            "add",
            "ng0",
            "netns",
            first,
            "type",
            "veth",
            "peer",
            "name",
            "ng0",
            "netns",
            second,
        )
        for number, name in enumerate(self.names, 1):
            self.ip("-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "ng0")
            for device in ("lo", "ng0"):
                self.ip("-n", name, "link", "set", device, "up")

    def down(self) -> None:
        processes.send(signal.SIGKILL, processes.marked(MARK, str(os.getpid())))
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                self.ip("netns", "del", name)

    def cut(self) -> None:
        self.ip("-n", self.names[0], "link", "set", "ng0", "down")

    def heal(self) -> None:
        self.ip("-n", self.names[0], "link", "set", "ng0", "up")

    def start(self, host: int, launch: list[str], *train: str) -> "subprocess.Popen[str]":
        """`nanogpt launch` of a training with one rank on a host."""
        line = command(
            "launch", "--nproc-per-node", "1", "--rdzv-endpoint", MEETING, *launch, "train", *train
        )
        named = ["unshare", "--uts", "sh", "-c", f'hostname host{host}; exec "$@"', "sh"]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *named, *line],
            cwd=self.folder,
            env={
                **os.environ,
                MARK: str(os.getpid()),
                "PYTHONPATH": str(CLONE),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory() as name:
        hosts = Hosts(Path(name))
        prepare(hosts.folder)
        try:
            hosts.up()
            yield hosts
        finally:
            hosts.down()


def training(run: str, updates: int, *more: str) -> list[str]:
    line = [
        "--dataset",
        "data",
        *TINY,
        "--vocab-size",
        "257",
        "--max-iters",
        str(updates),
        "--no-tensorboard",
    ]
    return [*line, "--eval-interval", "100000", "--log-interval", "100", "--out-dir", run, *more]


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> float:
    """Seconds until `condition` holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, "timed out"
        time.sleep(0.1)
    return round(time.monotonic() - started, 1)


def updates(run: Path) -> int:
    """The last update in metrics.jsonl."""
    with suppress(OSError, ValueError, IndexError):
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def fixed(rank: int) -> list[str]:
    return ["--nnodes", "2", "--node-rank", str(rank)]


def across(hosts: Hosts) -> dict[str, Any]:
    """A training over both hosts, to its end."""
    both = [hosts.start(host, fixed(host), *training("across", 300)) for host in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    return {"codes": [process.returncode for process in both], "told": told}


def cut_and_healed(hosts: Hosts, timeout_s: int = 10) -> dict[str, Any]:
    """The cable is cut in the middle: both launchers end. It is mended: the same command goes on,
    and is stopped.
    """
    line = training("cut", 10**6, "--timeout-s", str(timeout_s), "--save-interval", "100")
    both = [hosts.start(host, fixed(host), *line) for host in range(2)]
    wait_for(lambda: updates(hosts.folder / "cut") > 200)
    hosts.cut()
    cut = time.monotonic()
    told, seconds = ["", ""], [0.0, 0.0]
    for host, process in enumerate(both):
        told[host] = process.communicate(timeout=timeout_s + 60)[1]
        seconds[host] = round(time.monotonic() - cut, 1)
    before = updates(hosts.folder / "cut")
    hosts.heal()
    again = [hosts.start(host, fixed(host), *line) for host in range(2)]
    wait_for(lambda: updates(hosts.folder / "cut") > before + 200)
    for process in again:
        process.send_signal(signal.SIGTERM)
    resumed = [process.communicate(timeout=60)[1] for process in again]
    return {
        "codes": [process.returncode for process in both],
        "seconds": seconds,
        "last_lines": [text.strip().splitlines()[-1] for text in told],
        "resumed_from": re.findall(r"going on from (step-\d+)", resumed[0]),
        "codes_after": [process.returncode for process in again],
    }


def elastic(hosts: Hosts, timeout_s: int = 10) -> dict[str, Any]:
    """Two hosts of 1:2; the second goes, the first goes on alone; the second comes back, both go
    on.
    """
    run = hosts.folder / "elastic"
    launch = ["--nnodes", "1:2", "--max-restarts", "3"]
    line = training("elastic", 10**6, "--timeout-s", str(timeout_s), "--save-interval", "100")

    def ranks() -> int:
        with suppress(OSError, ValueError):
            return int(json.loads((run / "run.json").read_text())["world_size"])
        return 0

    def going(size: int) -> bool:
        return ranks() == size and updates(run) > mark[0] + 200

    mark = [0]
    first, second = (hosts.start(host, launch, *line) for host in range(2))
    found: dict[str, Any] = {"both_s": wait_for(lambda: going(2))}
    second.kill()
    processes.send(signal.SIGKILL, _in_namespace(hosts.names[1]))
    mark[0] = updates(run)
    found["shrunk_s"] = wait_for(lambda: going(1), 180)
    second = hosts.start(1, launch, *line)
    mark[0] = updates(run)
    found["grown_s"] = wait_for(lambda: going(2), 180)
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=90)[1] for process in (first, second)]
    found["codes"] = [first.returncode, second.returncode]
    found["resumed_from"] = re.findall(r"going on from step-0*(\d+)", told[0])
    found["told"] = told
    return found


def _in_namespace(name: str) -> set[int]:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return set(map(int, done.stdout.split()))


def main() -> None:
    if reason := missing():
        sys.exit(f"{reason}: nothing was tried")
    parts = {"across": across, "cut": cut_and_healed, "elastic": elastic}
    chosen = sys.argv[1:] or list(parts)
    with two_hosts() as hosts:
        print(json.dumps({name: parts[name](hosts) for name in chosen}, indent=1))


if __name__ == "__main__":
    main()
