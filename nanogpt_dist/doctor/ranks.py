"""What several ranks find, each on its machine, as one report: where they differ, and how fast they
speak to each other.
"""

import contextlib
import json
import os
import platform
import shlex
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from nanogpt_dist import __version__
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.check_machine import check_machine, in_order
from nanogpt_dist.doctor.machine import Machine, is_rank
from nanogpt_dist.doctor.scrub import is_secret_name, scrub_text
from nanogpt_dist.errors import Exit, NanogptError, explain, one_line

TIMEOUT_S = 120  # for all ranks to come: torch may lie on a slow disk
CLOCK_S = 1.0  # by which clocks may differ, with what a collective takes
SLOW = 0.7  # of the median rank's speed
SLOW_NETWORK = 125e6  # bytes per second, a gigabit
AGAIN = "export NCCL_DEBUG=INFO TORCH_CPP_LOG_LEVEL=INFO  # and the same command again"


@dataclass(frozen=True)
class Found:
    """What one rank has found. facts: what is to be the same on all; time: of its clock."""

    rank: int
    host: str
    checks: list[Check]
    facts: dict[str, str]
    tflops: float
    time: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@contextlib.contextmanager
def examine(machine: Machine) -> Iterator[tuple[list[Check], bool]]:
    """What is wrong with `machine` and its ranks, and whether this rank is to show it.

    For one block, at whose end the ranks part. Rank 0 shows what all have found; where they do not
    meet, one rank of each machine what it has found.
    """
    local_rank = machine.number("LOCAL_RANK") or 0
    ranked = is_rank(machine.environment) and machine.number("WORLD_SIZE") != 1
    checks = check_machine(machine, measure=not ranked or local_rank == 0)
    broken = any(check.name == "torch" and check.level == "error" for check in checks)
    if not ranked or broken:
        yield checks, not ranked or local_rank == 0
        return
    with contextlib.ExitStack() as stack:
        try:
            merged, rank, part = _meet(machine, checks, stack)
        except (NanogptError, RuntimeError, OSError) as error:
            stack.pop_all()  # the others may be gone: nothing waits for them
            yield in_order([*checks, _not_met(error)]), local_rank == 0
            return
        yield merged, rank == 0
        part()


def _not_met(error: Exception) -> Check:
    code = explain(error)[0]
    reason = str(error).strip().partition("\n")[0]
    return Check(
        "ranks", "error", one_line(f"they do not meet: {reason}", 170), AGAIN, _exit_of(code)
    )


def _exit_of(code: int) -> Exit:
    return next((each for each in Exit if each == code), Exit.IO_ERROR)


def _meet(
    machine: Machine,
    checks: list[Check],
    stack: contextlib.ExitStack,
) -> tuple[list[Check], int, Any]:
    """The list of all ranks, this one's number, and what ends their time together."""
    from nanogpt_dist.distributed.world import connect

    world = stack.enter_context(connect("auto", TIMEOUT_S))
    world.settle()
    speed = world.all_reduce_speed()
    world.any(False)  # so that all look at their clocks at the same moment
    mine = Found(
        world.rank,
        socket.gethostname(),
        checks,
        _facts(machine),
        _tflops(world.device),
        time.time(),
    )
    texts = world.gather_texts(json.dumps(asdict(mine)))
    merged = merge([_parsed(text) for text in texts], speed)
    return merged, world.rank, lambda: world.with_long_timeout.any(False)


def _parsed(text: str) -> Found:
    fields = json.loads(text)
    checks = [Check(**{**check, "code": _exit_of(check["code"])}) for check in fields.pop("checks")]
    return Found(**fields, checks=checks)


def _facts(machine: Machine) -> dict[str, str]:
    import torch

    devices = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    set_here = {
        name: scrub_text(value)[:60]
        for name, value in machine.environment.items()
        if name.startswith(("NCCL_", "GLOO_", "OMP_"))
        and not name.endswith("SOCKET_IFNAME")
        and not is_secret_name(name)
    }
    return {
        "nanogpt": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "device": devices,
        "number of cores": str(os.cpu_count()),
        **set_here,
    }


def _tflops(device: Any) -> float:
    """Of a large product; 0 where there is no room for it."""
    import torch

    from nanogpt_dist.doctor.gpus import MEASURE_S
    from nanogpt_dist.peaks import measured_tflops

    try:
        return measured_tflops(device, torch.float32, MEASURE_S)
    except torch.OutOfMemoryError:  # others use it, which is a finding of its own
        return 0.0


def merge(found: list[Found], all_reduce_speed: float) -> list[Check]:
    """One list of what all ranks have found. A finding that is the same on several stands once."""
    hosts = list(dict.fromkeys(each.host for each in found))
    text = f"{len(found)} ranks on {len(hosts)} {'machine' if len(hosts) == 1 else 'machines'}, "
    text += f"all-reduce of 16 MiB at {all_reduce_speed / 1e9:,.2f} GB/s"
    slow = len(hosts) > 1 and all_reduce_speed < SLOW_NETWORK
    checks = [
        Check("ranks", "warning" if slow else "ok", text, "ip -s link" if slow else ""),
        *_alike(found),
        *_differences(found),
        *_clocks(found),
        *_slow_devices(found),
    ]
    return in_order(checks)


def _alike(found: list[Found]) -> Iterator[Check]:
    """What is well, as rank 0 says; what is not, with the ranks that say so."""
    yield from (check for check in found[0].checks if check.level == "ok")
    groups: dict[tuple[str, str, str], list[tuple[Found, Check]]] = {}
    for each in found:
        for check in each.checks:
            if check.level != "ok":
                groups.setdefault((check.name, check.level, check.todo), []).append((each, check))
    for members in groups.values():
        first, check = members[0]
        if len(members) == len(found):
            who = ""
        elif len(members) == 1:
            who = f"{first}: "
        else:
            others = ", ".join(str(each.rank) for each, _ in members[1:9])
            who = f"{first}, and ranks {others}{' …' if len(members) > 9 else ''}: "
        yield replace(check, text=who + check.text)


def _differences(found: list[Found]) -> Iterator[Check]:
    """What should be the same, and is not: the ranks that differ from most."""
    names = list(dict.fromkeys(name for each in found for name in each.facts))
    for name in names:
        values = Counter(each.facts.get(name, "unset") for each in found)
        most = values.most_common(1)[0][0]
        odd = [each for each in found if each.facts.get(name, "unset") != most]
        if not odd:
            continue
        version = name in ("nanogpt", "torch", "Python")
        variable = name.isupper()
        yield Check(
            "ranks differ",
            "error" if version else "warning",
            f"{odd[0]} has {name} {odd[0].facts.get(name, 'unset')}, most have {most}"
            + (f"; so do {len(odd) - 1} more" if len(odd) > 1 else ""),
            (
                f"unset {name}"
                if most == "unset"
                else f"export {name}={shlex.quote(most)}  # on {odd[0].host}"
            )
            if variable
            else f"ssh {odd[0].host} nanogpt doctor",
        )


def _alike_again(variable: str, value: str, host: str) -> str:
    """The line that gives a variable the value that it has on most ranks."""
    if value == "unset":
        return f"unset {variable}"
    return f"export {variable}={shlex.quote(value)}  # on {host}"


def _clocks(found: list[Found]) -> Iterator[Check]:
    for each in found:
        off = each.time - found[0].time
        if abs(off) > CLOCK_S and each.host != found[0].host:
            text = f"the clock of {each} is {off:+.1f} s off that of rank 0"
            yield Check("clock", "warning", text, f"ssh {each.host} sudo chronyc makestep")
            return


def _slow_devices(found: list[Found]) -> Iterator[Check]:
    measured = [each for each in found if each.tflops]
    if not measured:
        return
    median = statistics.median(each.tflops for each in measured)
    slowest = min(measured, key=lambda each: each.tflops)
    if slowest.tflops < SLOW * median:
        text = f"the device of {slowest} multiplies at {slowest.tflops / median:.0%} of the median"
        gpu = slowest.facts.get("device") != "cpu"
        todo = "nvidia-smi -q -d PERFORMANCE,CLOCK" if gpu else "top -b -n 1 | head -15"
        yield Check("slow rank", "warning", text, todo)
