"""Plays `nanogpt train` in one rank: leaves its process id in FOLDER, then ends in one of several
WAYS.

agreed CODE   every rank leaves the same verdict and exits 0
alone CODE    rank 1 fails on its first attempt, the others wait for it; a second attempt goes through
save          waits for SIGTERM, "saves", leaves the agreed verdict 75 and exits 0
deaf          ignores SIGTERM, and has a child in a session of its own
"""  # noqa: E501

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from launch.verdict import Verdict, write

RANK = int(os.environ["RANK"])
FOLDER, WAY = Path(sys.argv[1]), sys.argv[2]


def agree(code: int) -> None:
    write(Verdict(code, "we agree", RANK, agreed=True))
    sys.exit(0)


def fail_alone(code: int) -> None:
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        sys.exit(0)
    if RANK == 1:
        write(Verdict(code, "the disk is full", RANK, agreed=False))
        sys.exit(code)
    time.sleep(120)


def save(number: int, frame: FrameType | None) -> None:
    (FOLDER / f"saved-{RANK}").touch()
    agree(75)


def be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "120"], start_new_session=True)  # it inherits the deafness
    (FOLDER / f"pid-{child.pid}").touch()


if __name__ == "__main__":
    if WAY == "save":
        signal.signal(signal.SIGTERM, save)
    elif WAY == "deaf":
        be_deaf()
    (FOLDER / f"pid-{os.getpid()}").touch()
    (FOLDER / f"ready-{RANK}").touch()
    if WAY == "agreed":
        agree(int(sys.argv[3]))
    elif WAY == "alone":
        fail_alone(int(sys.argv[3]))
    time.sleep(120)
