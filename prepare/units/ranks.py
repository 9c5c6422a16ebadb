"""Several processes at one output folder: under torchrun, or as a Slurm array."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nanogpt_dist.errors import NanogptError, StorageError, UsageError, error_of
from nanogpt_dist.storage.durable import write_atomic
from nanogpt_dist.storage.runlock import lock_holder
from prepare.units.journal import LOCK, WorkFolder, read_json

WAIT_S = 1800.0  # without a sign of life from the rank that is waited for
POLL_S = 0.2
SLURM, TORCHRUN = "slurm:", "torchrun:"
MOST_DIGITS = 9  # of a number of ranks or tasks


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`.

    run: what tells this run from an earlier one on the same folder.
    """

    rank: int = 0
    size: int = 1
    run: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Ranks":
        """What torchrun or Slurm says.

        Raises UsageError for numbers that are none, and for an array whose numbers have gaps.
        """
        if _number(environment, "WORLD_SIZE", "1") > 1 and "RANK" in environment:
            parts = (
                "TORCHELASTIC_RUN_ID",
                "MASTER_ADDR",
                "MASTER_PORT",
                "TORCHELASTIC_RESTART_COUNT",
            )
            run = ":".join(environment.get(part, "") for part in parts)
            rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
            if rank >= size:
                raise UsageError(
                    f"RANK={rank}, but WORLD_SIZE is {size}: unset them, or start with torchrun"
                )
            return cls(rank, size, f"{TORCHRUN}{run}")
        if _number(environment, "SLURM_ARRAY_TASK_COUNT", "1") > 1:
            names = ("ID", "COUNT", "MIN", "MAX", "STEP")
            number, size, first, last, step = (
                _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in names
            )
            if not step or (last - first) // step + 1 != size or not first <= number <= last:
                raise UsageError(
                    f"a Slurm array of {size} from {first} to {last} has gaps; type sbatch "
                    f"--array=0-{size - 1}"
                )
            run = f"{SLURM}{environment.get('SLURM_ARRAY_JOB_ID', '')}:{environment.get('SLURM_RESTART_COUNT', '0')}"  # noqa: E501
            return cls((number - first) // step, size, run)
        return cls()

    @property
    def is_rank0(self) -> bool:
        """Whether this process makes the plan, puts the shards together and writes the manifest."""
        return self.rank == 0

    def leave_with_launcher(self) -> None:
        """End this process when torchrun is gone.

        Killed, torchrun leaves its ranks behind, which would hold the folder.
        """
        if self.run.startswith(TORCHRUN):
            launcher = os.getppid()

            def watch() -> None:
                while os.getppid() == launcher:
                    time.sleep(POLL_S)
                os._exit(1)

            threading.Thread(target=watch, daemon=True).start()

    def announce(self, work: WorkFolder) -> None:
        """Tell the other ranks that plan and tokenizer are there."""
        if self.size > 1:
            write_atomic(
                work.run,
                json.dumps({"run": self.run, "holder": lock_holder(work.folder / LOCK)}).encode(),
            )

    def _announced(self, work: WorkFolder) -> dict[str, Any] | None:
        """What the leading rank of this run has announced.

        torchrun may call each of its runs the same: then only what the holder of the lock says
        counts.
        """
        content = read_json(work.run)
        if not isinstance(content, dict) or content.get("run") != self.run:
            return None
        if self.run.startswith(SLURM) and "line" in content:
            return content
        current = lock_holder(work.folder / LOCK)
        return content if current is not None and content.get("holder") == current else None

    def wait_for_plan(self, work: WorkFolder) -> bool:
        """Wait until rank 0 has announced this run.

        False where the folder is finished already.

        Raises what the leading rank has ended with; StorageError where nothing comes.
        """
        started, seen = time.monotonic(), False
        while not work.finished:
            content = self._announced(work)
            if content is not None:
                if "line" in content:
                    raise _told("rank 0", content)
                return True
            if seen and not work.folder.is_dir() and not work.finished:
                raise StorageError(
                    "rank 0 has ended without a plan; see what it says, and start all ranks again"
                )
            seen = seen or work.folder.is_dir()
            if time.monotonic() - started > WAIT_S:
                waited = f"rank 0 has made no plan in {WAIT_S:,.0f} s"
                raise StorageError(f"{waited}; see what it says, and start all ranks again")
            time.sleep(POLL_S)
        return False

    def report(self, work: WorkFolder, error: BaseException) -> None:
        """Tell the other ranks why this one has ended."""
        if self.size > 1 and isinstance(error, NanogptError) and work.folder.is_dir():
            told = {
                "run": self.run,
                "code": int(error.code),
                "line": str(error),
                "holder": lock_holder(work.folder / LOCK),
            }
            with suppress(NanogptError):
                path = work.run if self.is_rank0 else work.folder / f"failed-{self.rank}"
                write_atomic(path, json.dumps(told).encode())

    def look_for_failures(self, work: WorkFolder) -> None:
        """Raises what another rank has ended with."""
        if self.size > 1:
            for path in work.folder.glob("failed-*"):
                raise _told(f"rank {path.name[7:]}", read_json(path))

    def wait_for_others(
        self,
        work: WorkFolder,
        advance: Callable[[], bool],
        look: Callable[[], None],
    ) -> None:
        """Call `advance` until it says that all is done, and `look` meanwhile.

        Raises what another rank has ended with; StorageError where nothing comes.
        """
        seen, since = -1, time.monotonic()
        while not advance():
            assert self.size > 1, "all units are done, and yet one is missing"
            self.look_for_failures(work)
            look()
            done = len(work.done())
            if done != seen:
                seen, since = done, time.monotonic()
            elif time.monotonic() - since > WAIT_S:
                waited = f"the other ranks have done nothing for {WAIT_S:,.0f} s"
                raise StorageError(f"{waited}; start all ranks again to go on")
            time.sleep(POLL_S)


def _number(environment: Mapping[str, str], name: str, otherwise: str = "") -> int:
    value = environment.get(name, otherwise)
    if not (value.isascii() and value.isdecimal()) or len(value) > MOST_DIGITS:
        raise UsageError(
            f"{name}={value[:40]!r} is not what torchrun or Slurm sets: unset it, or start there"
        )
    return int(value)


def _told(rank: str, failure: Any) -> NanogptError:
    """What another rank has ended with, by what it has left; a damaged note says only that."""
    code = failure.get("code") if isinstance(failure, dict) else None
    if type(code) is not int:
        return StorageError(f"{rank} has failed; see what it says, and start all ranks again")
    return error_of(code, f"{rank}: {failure.get('line')}")
