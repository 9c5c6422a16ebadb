"""`nanogpt verify`: its line, its exit code, its JSON."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "data"))


def spoil(path: Path, where: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def test_a_good_folder(nanogpt: Run, data: Path) -> None:
    files = len(list(data.iterdir()))
    assert nanogpt("verify", "data").stdout == f"data: all {files} files are good\n"
    (data / "notes.txt").write_text("mine")
    done = nanogpt("verify", "data", "--json")
    assert json.loads(done.stdout) == {"ok": True, "files": files, "bad": []}
    assert done.stderr == "note: not in the manifest, so not checked: notes.txt\n"


def test_bad_files_are_65_and_a_line(nanogpt: Run, data: Path) -> None:
    spoil(data / "text_val_000000.bin")
    done = nanogpt("verify", "data", code=65)
    assert done.stdout == "bad  text_val_000000.bin: damaged in MiB 0 of 1\n"
    line = (
        "one file is bad: text_val_000000.bin: damaged in MiB 0 of 1; restore a copy, or prepare "
        "again"
    )
    assert done.stderr == f"nanogpt: error: {line}\n"
    spoil(data / "text_train_000000.ends")
    done = nanogpt("verify", "data", "--json", code=65)
    found = json.loads(done.stdout)
    assert (found["ok"], found["files"]) == (False, 8)
    assert [bad["file"] for bad in found["bad"]] == [
        "text_train_000000.ends",
        "text_val_000000.bin",
    ]
    assert "2 of 8 files are bad: text_train_000000.ends: its sha256" in done.stderr


def test_a_cut_shard_is_named_with_its_whole_sizes(nanogpt: Run, data: Path) -> None:
    shard = data / "text_train_000000.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-7])
    line = f"bad: text_train_000000.bin: has {size - 7:,} bytes, expected {size:,}; restore a copy,"
    assert line in nanogpt("verify", "data", code=65).stderr


def test_an_unfinished_folder_and_what_is_no_data_folder(
    nanogpt: Run,
    data: Path,
    tmp_path: Path,
) -> None:
    (data / "manifest.json").unlink()
    done = nanogpt("verify", "data", "--json", code=65)
    [bad] = json.loads(done.stdout)["bad"]
    assert bad["file"] == "manifest.json"
    assert done.stderr == f"nanogpt: error: {bad['reason']}\n"
    assert "run the same nanogpt prepare again" in done.stderr
    assert nanogpt("verify", "nowhere", "--json", code=66).stdout == ""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "type nanogpt checkpoint verify run" in nanogpt("verify", "run", code=2).stderr
