"""A process that encodes units, with a pipe of its own.

So nobody waits for what it leaves half written, or locked, when it is killed: the pool of
concurrent.futures, whose workers share two queues, waits for ever where one is killed while another
starts.
"""

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path

from nanogpt_dist.errors import NanogptError
from nanogpt_dist.signals import SIGNALS
from nanogpt_dist.tokenizer import load
from prepare.units.encode import Job, UnitRecord, encode_unit


class WorkerDiedError(Exception):
    """The worker is gone: killed, or out of memory."""


class Worker:
    """A process that encodes the units it is given into `folder`, one after the other.

    start() it, and kill() it in any case. jobs: units whose records have not been taken yet, the
    one at hand first. tokenizer: the file it was saved in.
    """

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        context = get_context("spawn")
        self.pipe, self._theirs = context.Pipe()
        arguments = (self._theirs, tokenizer, folder)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self.jobs: list[Job] = []

    def start(self) -> None:
        """Start the process, which does not hear Ctrl-C: we kill it. Raises OSError."""
        with _undisturbed():
            # which the first start would do, and it leaves SIGINT unblocked for the worker
            ensure_running()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                self._theirs.close()

    def give(self, job: Job, trace: Path | None = None) -> None:
        """A unit to encode, after those that it has. trace: a file for the document at hand."""
        self.jobs.append(job)
        with suppress(OSError):  # it has died, as take() will tell
            self.pipe.send((job, trace))

    def take(self) -> UnitRecord:
        """The record of its first job, once it is done.

        Raises WorkerDiedError, and what went wrong with the unit.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerDiedError from None
        if isinstance(answer, Exception):
            raise answer
        self.jobs.pop(0)
        assert isinstance(answer, UnitRecord)
        return answer

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self.pipe.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hear a request to stop at the end of the block only.

    A process half started cannot be cleaned up.

    Blocking signals would not do: another thread may take them, and the handler runs in this one
    all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in heard:
            signal.raise_signal(signum)


# ---- in the process


def _work(pipe: Connection, tokenizer: Path, folder: Path) -> None:
    # by SIGTERM multiprocessing ends what is left when it exits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        _encode_given(pipe, tokenizer, folder)


def _encode_given(pipe: Connection, tokenizer: Path, folder: Path) -> None:
    """Answer each unit with its record, or with what went wrong."""
    loaded = None
    while True:
        job, trace = pipe.recv()
        answer: UnitRecord | Exception
        try:
            loaded = loaded or load(tokenizer)
            answer = encode_unit(job, loaded, folder, trace)
        except Exception as error:
            answer = _portable(error)
        pipe.send(answer)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or one that arrives whole instead of it, with where it was raised."""
    if not isinstance(error, NanogptError | OSError | MemoryError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker:\n{traceback.format_exc()}")
    return error
