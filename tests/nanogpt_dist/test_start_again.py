"""A process that starts itself again: what it leaves behind, and what it does not die of."""

import subprocess
import sys

import pytest

from tests.conftest import CLONE

CODE = """
import os, signal, sys, threading
from nanogpt_dist.start_again import start_again, times
way = sys.argv[1]
if times() == 0:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.dup2(1, 10, inheritable=True)
    if way == "unlisted":
        os.listdir = lambda path: open("/dev/fd/none")
    if way == "thread":
        thread = threading.Thread(target=start_again)
        thread.start()
        thread.join()
    start_again()
os.kill(os.getpid(), signal.SIGUSR1)
try:
    os.fstat(10)
    print("10 is open")
except OSError:
    print(times(), "and alive")
"""


@pytest.mark.parametrize("way", ["main", "thread", "unlisted"])
def test_it_comes_without_files_and_survives_a_signal_as_it_starts(way: str) -> None:
    line = [sys.executable, "-c", CODE, way]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1 and alive\n"), done.stderr
