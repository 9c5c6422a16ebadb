"""Output where a user says: each kind of file stays what it is."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import MAX_LINE, CannotCreateError, StorageError
from nanogpt_dist.storage import user_file
from tests.conftest import CLONE

# other processes import this clone, whatever is installed, and buffer what they print
HERE = {**os.environ, "PYTHONPATH": str(CLONE), "PYTHONUNBUFFERED": ""}


def test_probe_writable(tmp_path: Path) -> None:
    storage.probe_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]
    (tmp_path / "file").write_text("?")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(CannotCreateError, match="cannot write in") as error:
            storage.probe_writable(folder)
        assert len(str(error.value)) < MAX_LINE


def test_a_probe_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(user_file, "write_new", full)
    with pytest.raises(CannotCreateError, match="a/b: No space left on device; name a folder"):
        storage.probe_writable(tmp_path / "there" / "a" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_file_of_the_users_stays_what_it_is(tmp_path: Path) -> None:
    real, link, dangling, pipe = (tmp_path / name for name in ("real", "link", "dangling", "pipe"))
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real")
    dangling.symlink_to("not-yet")
    os.mkfifo(pipe)
    storage.write_user_file(link, b"new")
    storage.write_user_file(dangling, b"first")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640
    assert dangling.is_symlink()
    assert (tmp_path / "not-yet").read_bytes() == b"first"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    storage.write_user_file(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    assert pipe.is_fifo()
    os.close(reader)
    storage.write_user_file(Path(os.devnull), b"gone")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(CannotCreateError, match="is a folder"):
        storage.write_user_file(tmp_path, b"")
    with pytest.raises(StorageError, match="below: Not a directory"):
        storage.write_user_file(real / "below", b"")
    with pytest.raises(StorageError, match="disk full: /dev/full"):
        storage.write_user_file(Path("/dev/full"), b"x")


@pytest.mark.parametrize("number", [1, 2])
def test_a_link_to_a_standard_stream_adds_to_what_was_printed(number: int, tmp_path: Path) -> None:
    link = tmp_path / "stream"
    link.symlink_to(f"/proc/self/fd/{number}")
    if not os.path.exists(link):
        pytest.skip("needs /proc")
    code = (
        "import os, sys; from pathlib import Path; from nanogpt_dist import storage; "
        f"stream = (sys.stdout, sys.stderr)[{number} - 1]; other = 3 - {number}; "
        "os.close(other); print('before', file=stream); "  # the other one may be closed
        f"storage.write_user_file(Path({str(link)!r}), b'in between\\n'); "
        "print('after', file=stream)"
    )
    with open(tmp_path / "said", "wb") as said:
        where = {"stdout" if number == 1 else "stderr": said}
        subprocess.run([sys.executable, "-c", code], env=HERE, **where, check=True)  # type: ignore[call-overload]
    assert (tmp_path / "said").read_text() == "before\nin between\nafter\n"
    assert link.is_symlink()


def test_a_standard_output_that_is_full_is_an_error_in_one_line() -> None:
    code = (
        "import sys; from pathlib import Path; from nanogpt_dist import errors, storage\n"
        "try: storage.write_user_file(Path('/dev/full'), b'x')\n"
        "except errors.StorageError as error: sys.stderr.write(str(error))"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], env=HERE, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr.startswith("disk full: /dev/full, ")
