"""The checkpoints of a run: order, the newest good one, pruning, and hands off what is not ours."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.errors import MAX_LINE, BadDataError, StorageError
from nanogpt_dist.storage import manifest, steps
from nanogpt_dist.storage.durable import open_plain
from nanogpt_dist.storage.steps import step_name, step_of
from tests.nanogpt_dist.storage.test_manifest import forge

STRANGERS = [
    "step-1",
    "step-00000001x",
    "step-000000012",
    "Step-00000001",
    ".bad-step-00000001-1",
    "best",
    ".tmp-mine",
]


def fill(staging: Path) -> None:
    (staging / "w").write_bytes(b"w" * 99)


def make(checkpoints: Path, steps: Iterable[int]) -> None:
    for step in steps:
        storage.commit(checkpoints, step_name(step), fill, {})


def spoil(folder: Path) -> None:
    data = bytearray((folder / "w").read_bytes())
    data[random.randrange(99)] ^= 1
    (folder / "w").write_bytes(data)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@given(st.integers(0, 10**18 - 1))
def test_names_and_numbers_round_trip(step: int) -> None:
    assert step_of(step_name(step)) == step


@given(st.text() | st.from_regex(r"step-\d+"))
def test_a_number_has_one_name(name: str) -> None:
    step = step_of(name)
    assert step is None or step_name(step) == name


def test_order_is_by_step_and_never_by_time(tmp_path: Path) -> None:
    make(tmp_path, [20, 3, 123_456_789, 100])
    for age, step in enumerate((123_456_789, 3, 20, 100)):
        os.utime(tmp_path / step_name(step), (age * 10**9, age * 10**9))
    for name in STRANGERS:
        (tmp_path / name).mkdir()
    assert [step_of(path.name) for path in storage.list_steps(tmp_path)] == [
        123_456_789,
        100,
        20,
        3,
    ]
    assert storage.newest_good(tmp_path, pytest.fail) == tmp_path / step_name(123_456_789)
    assert storage.list_steps(tmp_path / "nowhere") == []


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert storage.newest_good(tmp_path, pytest.fail) is None
    assert storage.newest_good(tmp_path / "nowhere", pytest.fail) is None


def test_one_that_is_pruned_while_it_is_looked_at_is_not_called_damaged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its run, which goes on: what it has saved meanwhile counts."""
    make(tmp_path, [1, 2])
    verify = steps.verify

    def prune_and_verify(folder: Path) -> list[tuple[str, str]]:
        if folder.name in (step_name(1), step_name(2)):
            shutil.rmtree(folder)
            if folder.name == step_name(1):
                make(tmp_path, [3])
        return verify(folder)

    monkeypatch.setattr(steps, "verify", prune_and_verify)
    assert storage.newest_good(tmp_path, pytest.fail, False) == tmp_path / step_name(3)


@pytest.mark.parametrize("how", ["flip", "no manifest", "empty", "file", "link"])
def test_bad_ones_are_set_aside_and_the_newest_good_one_is_taken(tmp_path: Path, how: str) -> None:
    make(tmp_path, [1, 2, 3, 4])
    spoil(tmp_path / step_name(3))
    last = tmp_path / step_name(4)
    if how == "flip":
        spoil(last)
    elif how == "no manifest":
        (last / "manifest.json").unlink()
    else:
        last.rename(tmp_path / "away")
        if how == "link":
            last.symlink_to("nowhere")
        else:
            last.mkdir() if how == "empty" else last.write_text("?")
    (tmp_path / ".bad-step-00000003-1").mkdir()  # from another time
    warnings: list[str] = []
    assert storage.newest_good(tmp_path, warnings.append) == tmp_path / step_name(2)
    assert len(warnings) == 2
    assert warnings[0].startswith("step-00000004 is damaged (")
    assert warnings[1] == (
        "step-00000003 is damaged (w does not match its sha256), set aside as "
        ".bad-step-00000003-2; using step-00000002"
    )
    assert {".bad-step-00000004-1", ".bad-step-00000003-2", step_name(1), step_name(2)} <= names(
        tmp_path
    )
    assert not {step_name(3), step_name(4)} & names(tmp_path)


def test_a_reader_renames_nothing(tmp_path: Path) -> None:
    make(tmp_path, [1, 2])
    spoil(tmp_path / step_name(2))
    warnings: list[str] = []
    assert storage.newest_good(tmp_path, warnings.append, rename_bad=False) == tmp_path / step_name(
        1
    )
    assert warnings == [
        "step-00000002 is damaged (w does not match its sha256); using step-00000001"
    ]
    assert names(tmp_path) == {step_name(1), step_name(2)}


def test_if_all_are_bad_nothing_changes(tmp_path: Path) -> None:
    make(tmp_path, [1, 2, 3])
    for folder in storage.list_steps(tmp_path):
        spoil(folder)
    before = {path: path.lstat() for path in tmp_path.rglob("*")}
    with pytest.raises(
        BadDataError, match=r"all 3 checkpoints .*step-00000003: w does not match.*--fresh"
    ) as error:
        storage.newest_good(tmp_path, pytest.fail)
    assert len(str(error.value)) < MAX_LINE
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == {
        path: state.st_mtime_ns for path, state in before.items()
    }


def test_a_bad_one_that_cannot_be_renamed_is_left_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, [1, 2])
    spoil(tmp_path / step_name(2))
    warnings: list[str] = []
    monkeypatch.setattr(os, "rename", failing("rename"))
    assert storage.newest_good(tmp_path, warnings.append) == tmp_path / step_name(1)
    assert "sha256), left in place (Input/output error); using step-00000001" in warnings[0]
    assert names(tmp_path) == {step_name(1), step_name(2)}


def test_what_is_no_folder_of_checkpoints_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("?")
    for use in (storage.list_steps, storage.sweep):
        with pytest.raises(StorageError, match="file: Not a directory; check the disk"):
            use(tmp_path / "file")


def test_a_newer_format_stops_instead_of_falling_back(tmp_path: Path) -> None:
    make(tmp_path, [1, 2])
    forge(tmp_path / step_name(2), lambda manifest: manifest.update(format=9))
    with pytest.raises(storage.NewerFormatError):
        storage.newest_good(tmp_path, pytest.fail)
    assert storage.prune(tmp_path, keep=1, also=set()) == []
    assert names(tmp_path) == {step_name(1), step_name(2)}


def test_prune_keeps_the_newest_and_the_named(tmp_path: Path) -> None:
    make(tmp_path, range(1, 7))
    for name in STRANGERS:
        (tmp_path / name).mkdir()
    assert storage.prune(tmp_path, keep=2, also={step_name(3), "nonsense"}) == [
        step_name(step) for step in (4, 2, 1)
    ]
    assert names(tmp_path) == {step_name(step) for step in (3, 5, 6)} | set(STRANGERS)
    assert storage.prune(tmp_path, keep=9, also=set()) == []


def test_prune_keeps_what_latest_names(tmp_path: Path) -> None:
    make(tmp_path, range(1, 5))
    storage.write_latest(tmp_path, step_name(2))  # what came after could not be noted
    assert storage.prune(tmp_path, keep=1, also=set()) == [step_name(3), step_name(1)]
    assert names(tmp_path) == {step_name(2), step_name(4), "latest"}


def test_prune_reads_no_weights(tmp_path: Path) -> None:
    """It looks at names and sizes: to hash all checkpoints would take minutes, at each save."""
    make(tmp_path, [1, 2, 3])
    spoil(tmp_path / step_name(1))
    assert storage.prune(tmp_path, keep=1, also=set()) == [step_name(2), step_name(1)]


def test_a_prune_that_cannot_be_undone_says_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, [1, 2, 3])
    calls, rename = [], os.rename

    def worse(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) > 1:
            number = errno.EIO if len(calls) == 2 else errno.EROFS
            raise OSError(number, os.strerror(number))
        rename(old, new)

    monkeypatch.setattr(os, "rename", worse)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.prune(tmp_path, keep=1, also=set())


def test_what_could_not_be_deleted_goes_with_the_next_prune(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path, [1, 2])
    (tmp_path / ".trash-mine").mkdir()
    monkeypatch.setattr(os, "unlink", failing("unlink"))
    with pytest.raises(StorageError):
        storage.prune(tmp_path, keep=1, also=set())
    assert len(names(tmp_path)) == 3
    assert storage.prune(tmp_path, keep=1, also=set()) == []
    assert names(tmp_path) == {step_name(2), ".trash-mine"}


@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_a_prune_that_fails_leaves_each_under_its_name(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path, [1, 2, 3])
    monkeypatch.setattr(os, name, failing(name, after=int(name == "rename")))
    with pytest.raises(StorageError):
        storage.prune(tmp_path, keep=1, also=set())
    assert names(tmp_path) == {step_name(step) for step in (1, 2, 3)}


def failing(name: str, after: int = 0) -> Callable[..., Any]:
    """A function of `os` that fails once, after so many calls that go well."""
    calls, real = [], getattr(os, name)

    def call(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == after + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **more)

    return call


def test_what_is_pinned_is_never_pruned(tmp_path: Path) -> None:
    make(tmp_path, range(1, 6))
    assert storage.read_pins(tmp_path) == set()
    storage.write_pins(tmp_path, {step_name(2), step_name(4)})
    assert storage.read_pins(tmp_path) == {step_name(2), step_name(4)}
    assert storage.prune(tmp_path, keep=1, also=set(), every=3) == [step_name(1)]
    (tmp_path / storage.PINS).write_bytes(b"step-00000002\nnonsense\n\xff")
    assert storage.read_pins(tmp_path) == {step_name(2)}


def test_a_damaged_one_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    make(tmp_path, [1, 2, 3])
    (tmp_path / step_name(3) / "w").write_bytes(b"short")
    assert storage.prune(tmp_path, keep=1, also=set()) == [step_name(1)]
    assert names(tmp_path) == {step_name(2), step_name(3)}


def test_sweep_removes_what_dead_attempts_left_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, [1])
    dead = storage.begin(tmp_path, step_name(2))
    (dead / "half").write_bytes(b"?")
    os.rename(storage.begin(tmp_path, step_name(3)), tmp_path / ".trash-step-00000003-0123abcd")
    (tmp_path / ".tmp-latest-89abcdef").write_text("step")
    target = tmp_path / "precious"
    target.mkdir()
    (target / "x").write_text("x")
    (tmp_path / ".tmp-link-00000000").symlink_to(target)
    for name in STRANGERS:
        (tmp_path / name).mkdir()
    assert len(storage.sweep(tmp_path)) == 4
    assert names(tmp_path) == {step_name(1), "precious", *STRANGERS}
    assert (target / "x").exists()
    assert storage.sweep(tmp_path / "nowhere") == []


def test_latest_is_a_hint(tmp_path: Path) -> None:
    make(tmp_path, [1, 2])
    assert storage.read_latest(tmp_path) is None
    storage.write_latest(tmp_path, step_name(1))
    assert storage.read_latest(tmp_path) == step_name(1)
    assert storage.newest_good(tmp_path, pytest.fail) == tmp_path / step_name(2)
    for torn in (b"", b"step-0000", b"../../x", b"\xff" * 999):
        (tmp_path / "latest").write_bytes(torn)
        assert storage.read_latest(tmp_path) is None


@pytest.mark.parametrize(
    "left",
    [
        ".DS_Store",
        "._w",
        "Thumbs.db",
        "desktop.ini",
        ".nfs0001",
        "w~",
        ".w.swp",
        ".~lock.w#",
        "thumbs.DB",
        ".a\nb",
    ],
)
def test_what_file_managers_leave_is_no_damage(left: str, tmp_path: Path) -> None:
    make(tmp_path, [1])
    (tmp_path / step_name(1) / left).write_bytes(b"")
    assert storage.newest_good(tmp_path, pytest.fail) == tmp_path / step_name(1)
    (tmp_path / step_name(1) / "model-00002.safetensors").write_bytes(b"")  # that would be read
    assert storage.verify(tmp_path / step_name(1)) == [
        ("model-00002.safetensors", "is not in the manifest")
    ]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", ["w", "manifest.json"])
def test_what_cannot_be_read_is_not_called_damaged(
    name: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path, [1, 2])

    def refuse(path: Path) -> BufferedReader:
        if path.parent.name == step_name(2) and path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return open_plain(path)

    monkeypatch.setattr(manifest, "open_plain", refuse)
    before = names(tmp_path)
    with pytest.raises(StorageError, match=f"{step_name(2)}/{name}: {os.strerror(number)}"):
        storage.newest_good(tmp_path, pytest.fail)
    assert names(tmp_path) == before
    assert storage.prune(tmp_path, 1, set()) == []  # it neither counts nor goes
