"""What a run logs: metrics.jsonl (the record), samples.jsonl, TensorBoard, W&B, the terminal.

TensorBoard and W&B are best effort.
"""

import contextlib
import re
import sys
import threading
import time
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.appending import append_lines, open_to_append, refuse_odd
from nanogpt_dist.storage.durable import MOST_BYTES, open_plain, storage_errors
from nanogpt_dist.storage.events import EVENTS
from nanogpt_dist.storage.shallow_json import parse_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from nanogpt_dist.generation.sampling import Sample
    from nanogpt_dist.training.wandb import WandbBoard

RECORD = "metrics.jsonl"
NEVER_S = 1e12  # 30,000 years


def duration(seconds: float) -> str:
    """Seconds for people: 42s, 3m07s, 5h20m, 4d06h; – for what is no time, as infinity."""
    if not abs(seconds) < NEVER_S:
        return "–"
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


def cut_record(path: Path, step: int) -> None:
    """Drop what metrics.jsonl or samples.jsonl tells of steps after `step`, and a torn last line.

    These steps are about to be made again. Raises OSError, StorageError.
    """
    refuse_odd(path)
    if not path.exists():
        return
    kept = []
    with open_plain(path) as file:
        while line := file.readline(MOST_BYTES):  # of a longer line, which is none of ours, a part
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line.rstrip(b"\r\n") + b"\n")
            except (ValueError, KeyError, TypeError):
                continue
    storage.write_atomic(path, b"".join(kept))


def put_before_now(board: Path, now: int) -> None:
    """Rename TensorBoard's files of a clock that was ahead.

    TensorBoard reads them in the order of the time in their names.

    events.out.tfevents.TIME.…: TIME in seconds; what was written from now on is to come last.
    Nothing is renamed behind a link: that folder may be of others, too.
    """
    if board.is_symlink():
        return
    named = [
        (re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(\..*)", path.name), path)
        for path in board.glob("events.*")
    ]
    for match, path in sorted(
        ((m, p) for m, p in named if m), key=lambda one: one[1].name, reverse=True
    ):
        at = min(int(match[2]), now - 1)
        if at != int(match[2]):
            path.rename(path.with_name(f"{match[1]}{at:010d}{match[3]}"))
        now = at


class Console:
    """Lines on stderr; on a terminal the progress line is rewritten in place."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.live = enabled and sys.stderr.isatty()

    def progress(self, text: str) -> None:
        """A line that the next one may replace."""
        self._write(f"\r\x1b[K{text}" if self.live else f"{text}\n")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")

    def _write(self, text: str) -> None:
        if self.enabled:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:  # the terminal or the pipe is gone: training goes on in silence
                self.enabled = False


def _as_code(text: str) -> str:
    """`text` as Markdown that shows it as it stands."""
    return "".join(f"    {line}\n" for line in text.splitlines())


class Recorder:
    """Writes one object per logged step and per evaluation. Made on rank 0 only."""

    def __init__(self, run: Path, step: int, config: TrainConfig, console: Console) -> None:
        with storage_errors(run / RECORD):
            cut_record(run / RECORD, step)
            self._record: RawIOBase = open_to_append(run / RECORD)
        with storage_errors(run / run_folder.SAMPLES):
            cut_record(run / run_folder.SAMPLES, step)
        with storage_errors(run / EVENTS):  # note_event() would leave it out in silence
            refuse_odd(run / EVENTS)
        self._samples = run / run_folder.SAMPLES
        self._unwritten = b""  # lines that the disk had no room for yet
        self._console = console
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._board = self._open_board(run / "tensorboard", step) if config.tensorboard else None
        self._wandb = self._open_wandb(run, config) if config.wandb_log else None

    def log_step(self, values: dict[str, Any], progress: str) -> None:
        """Record one step.

        values: step and scalars, None unknown; progress: its line on the terminal.
        """
        self._write("train", values)
        self._console.progress(progress)

    def log_evaluation(self, values: dict[str, Any], line: str) -> None:
        """Record one evaluation."""
        self._write("val", values)
        self._console.line(line)

    def log_samples(self, step: int, samples: "list[Sample]") -> None:
        """Record samples; what the disk has no room for is left out."""
        now = round(time.time(), 3)
        lines = [
            run_folder.to_json(
                {"step": step, "time": now, "prompt": each.prompt, "text": each.text}
            )
            for each in samples
        ]
        with contextlib.suppress(OSError):
            append_lines(self._samples, lines)
        self._to_board(
            lambda board: [
                board.add_text(f"samples/{i}", _as_code(each.prompt + each.text), step)
                for i, each in enumerate(samples)
            ]
        )

    def close(self) -> None:
        """Close all files."""
        self._append(b"")
        if lost := self._unwritten.count(b"\n"):
            self._console.line(
                f"warning: the last {lost} lines of {RECORD} are lost, the disk is still full"
            )
        self._record.close()
        self._to_board(lambda board: board.close())
        self._to_wandb(lambda board: board.close())
        threading.excepthook = self._excepthook

    def _write(self, group: str, values: dict[str, Any]) -> None:
        self._append(run_folder.to_json(values).encode() + b"\n")
        known = {n: v for n, v in values.items() if isinstance(v, int | float) and n != "time"}
        step = known.pop("step")
        self._to_board(
            lambda board: [board.add_scalar(f"{group}/{n}", v, step) for n, v in known.items()]
        )
        self._to_wandb(lambda board: board.write(group, known, step))

    def _append(self, line: bytes) -> None:
        """Write the pending lines.

        A full disk must not end the run: they wait until there is room.
        """
        waiting, self._unwritten = bool(self._unwritten), self._unwritten + line
        try:
            while self._unwritten:  # write() may take less than it is given
                self._unwritten = self._unwritten[self._record.write(self._unwritten) :]
        except OSError as error:
            if not waiting:
                self._console.line(
                    f"warning: {RECORD} cannot be written ({error.strerror}); its lines wait for "
                    "room"
                )

    def _open_board(self, folder: Path, step: int) -> "SummaryWriter | None":
        from torch.utils.tensorboard import SummaryWriter

        try:
            put_before_now(folder, int(time.time()))
            return SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)
        except OSError as error:
            self._board_failed(error)
            return None

    def _on_thread_error(self, error: Any) -> None:
        """TensorBoard's thread needs no traceback: its error comes back at our next write."""
        if not (
            isinstance(error.exc_value, OSError)
            and type(error.thread).__name__ == "_AsyncWriterThread"
        ):
            self._excepthook(error)

    def _to_board(self, write: Any) -> None:
        if self._board is not None:
            try:
                write(self._board)
            except OSError as error:
                self._board = None
                self._board_failed(error)

    def _board_failed(self, error: OSError) -> None:
        self._console.line(
            f"warning: TensorBoard's files cannot be written ({error}); {RECORD} has everything"
        )

    def _open_wandb(self, run: Path, config: TrainConfig) -> "WandbBoard | None":
        from nanogpt_dist.training.wandb import WandbBoard

        try:
            board = WandbBoard(run, config)
        except ConfigError:
            raise
        except Exception as error:  # of wandb's many kinds
            self._wandb_failed(error)
            return None
        if board.is_of_a_copy:
            self._console.line(
                f"note: {run} is a copy: a new run at Weights & Biases, the other keeps its own"
            )
        return board

    def _to_wandb(self, write: Any) -> None:
        if self._wandb is not None:
            try:
                write(self._wandb)
            except Exception as error:
                self._wandb = None
                self._wandb_failed(error)

    def _wandb_failed(self, error: Exception) -> None:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        self._console.line(
            f"warning: Weights & Biases is not told any more ({reason}); {RECORD} has everything"
        )
