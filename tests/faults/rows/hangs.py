"""Ranks that hang, folders that lag, clocks that jump."""

import functools
import random
import signal
import socket
import time
from pathlib import Path

from tests.faults import checks, commands, hooks, prepared
from tests.faults.row import Row
from tests.faults.rows.kills import LINE, ON, has_logged, until

TIMEOUT_S = 4


def rank_hangs(choose: random.Random, folder: Path) -> float:
    """Stop a rank, or let it sleep over a batch: the other names it; seconds until it leaves."""
    (folder / "data").symlink_to(prepared.data() / "data")
    rank, sleeps, step = choose.randrange(2), choose.random() < 0.5, choose.randint(8, 30)

    def before(each: int) -> None:
        if sleeps and each == rank:
            hooks.sleep_at(step + 3)

    line = [*LINE, *ON, "--timeout-s", str(TIMEOUT_S)]
    started = commands.start(*line, folder=folder, ranks=2, before=before)
    until(has_logged(folder, step))
    start = time.monotonic()
    if not sleeps:
        started.send(signal.SIGSTOP, rank)
    until(lambda: started.poll() or 1 - rank in started.codes, 60)
    seconds = time.monotonic() - start
    started.kill()
    assert started.codes[1 - rank] == 74, started.codes
    how = "hangs" if sleeps else "is stopped"
    assert f"lost rank {rank} (pid {started.pids[rank]}), which {how}" in started.stderr
    stacks = folder / "out" / "stacks" / f"rank-0000{1 - rank}.txt"
    assert "training/loop.py" in stacks.read_text(), "no stack of who waited"
    checks.all_good(folder / "out")
    assert seconds <= TIMEOUT_S + 35, f"the other left after {seconds:.1f} s"
    return seconds


def folder_lags(choose: random.Random, folder: Path) -> None:
    """Rank 1 sees each new name late: both save and resume the same, or say why not."""
    whole = prepared.trained_by_two()
    (folder / "data").symlink_to(whole / "data")
    lag, cut = choose.uniform(0.1, 5), choose.choice([8, 12, 16])

    def before(rank: int) -> None:
        if rank:
            hooks.late_names(folder / "out", lag)

    halves = ["--lr-decay-iters", "24", "--max-iters"]
    run = functools.partial(commands.run, folder=folder, ranks=2, before=before)
    run(*LINE, *halves, cut)
    run(*LINE, *halves, 24)
    checks.same_end(folder / "out", whole / "out", 24)


def clock_jumps(choose: random.Random, folder: Path) -> None:
    """The date jumps by years while a run is trained, killed and resumed, in any time zone."""
    whole = prepared.trained_by_two()
    (folder / "data").symlink_to(whole / "data")
    zone = {"TZ": choose.choice(["Asia/Tokyo", "Pacific/Kiritimati", "America/St_Johns", "UTC"])}

    def before(rank: int) -> None:
        time.tzset()
        hooks.clock_jumps(random.Random(f"{choose.random()} {rank}"))

    run = functools.partial(commands.start, folder=folder, ranks=2, variables=zone, before=before)
    started = run(*LINE)
    end = time.monotonic() + choose.uniform(0, 2)
    while time.monotonic() < end and not started.poll():
        time.sleep(0.005)
    started.kill()
    again = run(*LINE)
    assert again.wait() == 0, again.stderr[-1000:]
    checks.same_end(folder / "out", whole / "out", 24)


def port_taken(choose: random.Random, folder: Path) -> float:
    """Somebody listens where the ranks are to meet: said at once; seconds until then."""
    (folder / "data").symlink_to(prepared.data() / "data")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0"}
        where |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        begun = time.monotonic()
        started = commands.start(*LINE, folder=folder, variables=where)
        assert started.wait(30) == 73, started.stderr[-500:]
        seconds = time.monotonic() - begun
    assert f"MASTER_PORT {port} is taken by another process" in started.stderr
    assert started.stderr.count("\n") == 1, started.stderr
    assert seconds <= 5, f"after {seconds:.1f} s"
    return seconds


ROWS = [
    Row(
        number=7,
        fault="a rank hangs: SIGSTOP, or over a batch",
        holds=f"the others name it, leave stacks, and go, within the timeout ({TIMEOUT_S} s) + 35",
        goal=20,
        attempt=rank_hangs,
        short=1,
        tests=["tests/nanogpt_dist/distributed/test_watchdog.py"],
    ),
    Row(
        number=22,
        fault="a shared folder lags on one rank",
        holds="ranks decide the same, and end with the same bits",
        goal=50,
        attempt=folder_lags,
        short=1,
    ),
    Row(
        number=23,
        fault="the clock jumps by years; other time zones",
        holds="the run ends with the same bits",
        goal=20,
        attempt=clock_jumps,
        short=1,
    ),
    Row(
        number=43,
        fault="the port at which ranks meet is taken",
        holds="one line says so within 5 s, 73",
        goal=20,
        attempt=port_taken,
        short=1,
        tests=["tests/cli/test_main.py::test_ranks_that_do_not_come_are_named"],
    ),
]
