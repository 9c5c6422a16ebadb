"""What making a process group leaves of a command's own output."""

import subprocess
import sys

from tests.conftest import CLONE

# As gloo of torch 2.9 does, which tells of its connections on standard output.
TALKING = """
import os, torch.distributed as dist
from nanogpt_dist.distributed import world

def talking(make):
    def made(*arguments, **named):
        os.write(1, b"[Gloo] Rank 0 is connected to 0 peer ranks.\\n")
        return make(*arguments, **named)
    return made

for name in ("init_process_group", "new_group"):
    setattr(dist, name, talking(getattr(dist, name)))
with world.connect("cpu", 60, group=True) as alone:
    print(f"ranks: {alone.size}")
    os.write(1, b"as ever\\n")
"""


def test_what_gloo_says_goes_to_standard_error() -> None:
    line = [sys.executable, "-uc", TALKING]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ranks: 1\nas ever\n", done.stderr
    assert done.stderr.count("[Gloo]") == 2
