"""Plays torchrun, without its seconds of start-up: `python launch_agent.py RESTARTS COMMAND …` runs
two ranks.

Like the original it starts each rank in a session of its own, returns 1 if one fails, and starts
them again before.
"""

import os
import subprocess
import sys
import time


def attempt(count: int, command: list[str]) -> bool:
    ranks = [
        subprocess.Popen(
            command,
            start_new_session=True,
            env={**os.environ, "RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(count)},
        )
        for rank in range(2)
    ]
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.02)
    for rank in ranks:
        rank.terminate()
    return all(rank.wait() == 0 for rank in ranks)


if __name__ == "__main__":
    sys.exit(0 if any(attempt(count, sys.argv[2:]) for count in range(int(sys.argv[1]) + 1)) else 1)
