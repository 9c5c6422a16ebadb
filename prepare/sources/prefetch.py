"""Files of a hub data set one after the other, the next on its way while one is read."""

import threading
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from nanogpt_dist.hub import remove_from_cache
from nanogpt_dist.hub_retries import RetryPolicy, retrying
from nanogpt_dist.storage.durable import sha256_file, storage_errors
from prepare.sources.hub import HubFile, HubFiles, Note, fetch

LEAVE_S = 5.0  # how long the end waits for a download to notice that it is not wanted any more


class Fetcher:
    """Verified files, by index, for as long as the `with` block runs; one thread downloads.

    folder None: files stay in the user's Hugging Face cache, from where another run takes them.
    A folder: they come to a cache in it, of which this is the only user, and leave it by release().
    note: is told, from the other thread too, when the hub gives trouble.
    """

    def __init__(
        self,
        files: HubFiles,
        folder: Path | None = None,
        note: Note | None = None,
    ) -> None:
        self.files, self.folder, self.note = files, folder, note
        self._policy = RetryPolicy(note=note)
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._futures: dict[int, Future[Path]] = {}
        # must not keep a process alive
        self._thread = threading.Thread(target=self._work, name="hub", daemon=True)

    def __enter__(self) -> "Fetcher":
        if self.folder is not None and self.folder.is_dir():
            for rest in self.folder.rglob("*.incomplete"):  # of a run that was killed
                with storage_errors(rest):
                    rest.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._policy.stop.set()
        self._wanted.put(None)
        self._thread.join(LEAVE_S)

    def expect(self, index: int) -> None:
        """Begin to fetch a file that path() will be asked for."""
        self._want(index)

    def path(self, index: int) -> Path:
        """Where the file is, once it is there and its sha256 is right.

        Raises HubUnavailableError, MissingInputError, StorageError; another call tries again.
        """
        future = self._want(index)
        try:
            return future.result()
        except Exception:
            self._futures.pop(index, None)
            raise

    def release(self, index: int) -> None:
        """The file is not needed any more: remove a copy in `folder`.

        One in the user's cache stays.
        """
        future = self._futures.pop(index, None)
        if (
            self.folder is not None
            and future is not None
            and future.done()
            and not future.exception()
        ):
            path = future.result()
            with storage_errors(path):
                remove_from_cache(path)

    def _want(self, index: int) -> Future[Path]:
        future = self._futures.get(index)
        if future is None:
            future = self._futures[index] = Future()
            self._wanted.put(index)
        return future

    def _work(self) -> None:
        with retrying(self._policy):
            while (index := self._wanted.get()) is not None:
                future = self._futures.get(index)
                if future is None or future.done() or self._policy.stop.is_set():
                    continue
                file = self.files.files[index]
                try:
                    future.set_result(self._fetched(file))
                except BaseException as error:  # handed to who asks for the file
                    future.set_exception(error)

    def _fetched(self, file: HubFile) -> Path:
        def is_good(path: Path) -> bool:
            with storage_errors(path):
                return path.stat().st_size == file.bytes and sha256_file(path) == file.sha256

        return fetch(self.files.repo, self.files.revision, file.name, self.folder, is_good)
