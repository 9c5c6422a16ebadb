"""manifest.json: its bytes, what is refused although its own sha256 is right, and what to type."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, Manifest
from nanogpt_dist.errors import BadDataError, MissingInputError, StorageError
from tests.nanogpt_dist.data.test_shards import write_folder

Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train: shards of 6, 6 and 3 ids; val: one of 5."""
    path = tmp_path / "mine"
    write_folder(path, np.arange(15), np.arange(5), tokenizers.byte(), 6)
    return path


def write(folder: Path, content: Content) -> None:
    """Write a manifest of this content as it is written, with the sha256 that it has then."""
    body = {name: value for name, value in content.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    text = json.dumps({**body, "sha256": digest}, indent=1) + "\n"
    (folder / "manifest.json").write_text(text)


def content_of(folder: Path) -> Content:
    return json.loads((folder / "manifest.json").read_bytes())


def test_its_bytes_are_those_of_every_version(folder: Path) -> None:
    """They make the data set id, by which a run knows its data again."""
    before = (folder / "manifest.json").read_bytes()
    content = content_of(folder)
    write(folder, content)
    assert (folder / "manifest.json").read_bytes() == before
    assert list(content)[:2] == ["format", "version"]
    assert (content["format"], content["version"]) == ("nanogpt-data", 2)
    assert content["counts"] == {"empty": 0, "replaced": 0, "skipped": 0, "special": 0}
    manifest, dataset_id = Manifest.read(folder)
    assert manifest.to_bytes() == before
    assert dataset_id == hashlib.sha256(before).hexdigest()
    assert {file.name for file in manifest.files()} == {
        path.name for path in folder.iterdir() if path.name != "manifest.json"
    }


def _set(*path: str | int, value: object) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        place: Any = content
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


TRAIN, VAL = ("splits", "train"), ("splits", "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("counts", "empty", value=-1), r"counts\.empty .*greater than or equal to 0"),
        (_set("counts", "empty", value="0"), r"counts\.empty .*valid integer"),
        (_set(*VAL, "bytes", value=10**400), r"splits\.val\.bytes .*less than or equal to"),
        (_set("max_tokens", value=2**63), r"max_tokens .*less than or equal to"),
        (_set("tokenizer", "n_vocab", value=10**400), r"tokenizer\.n_vocab .*less than or equal"),
        (_set("name", value="x" * 201), "name String should have at most 200 characters"),
        (_set("name", value=".hidden"), "name String should match pattern"),
        (_set(*TRAIN, "tokens", value=14), "shards of train do not add up to its totals"),
        (_set(*VAL, "documents", value=2), "shards of val do not add up to its totals"),
        (_set("sources", 0, "tokens", value=19), "tokens of the sources do not add up"),
        (_set("sources", 0, "documents", value=3), "documents of the sources do not add up"),
        (_set("tokenizer", "file", "name", value="mine_val_000000.bin"), "a file is listed twice"),
        (_set("splits", "test", value={}), r"splits\.test"),
        (_set("version", value=1), "has version 1, this nanogpt reads 2"),
        (_set("version", value=3), "has version 3, this nanogpt reads 2"),
        (_set("format", value="other"), "is not the manifest of a data folder"),
    ],
)
def test_what_does_not_hold_together_is_refused(
    folder: Path, change: Callable[[Content], None], message: str
) -> None:
    content = content_of(folder)
    change(content)
    write(folder, content)
    with pytest.raises(BadDataError, match=message):
        Manifest.read(folder)


def test_of_several_mistakes_the_first_is_told(folder: Path) -> None:
    write(folder, {**content_of(folder), "name": "a/b", "errors": "none", "more": 1})
    with pytest.raises(BadDataError, match=r"manifest\.json: name "):
        Manifest.read(folder)


def test_a_name_may_have_200_characters(folder: Path) -> None:
    write(folder, {**content_of(folder), "name": "x" * 200})
    assert Manifest.read(folder)[0].name == "x" * 200


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (256 << 20, "is not the manifest of a data folder, or cut off"),
        ((256 << 20) + 1, "is longer than the 268,435,456 bytes of any manifest"),
    ],
)
def test_a_manifest_without_end_is_not_read(folder: Path, size: int, message: str) -> None:
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(size)
    with pytest.raises(BadDataError, match=message):
        Manifest.read(folder)


def test_a_folder_in_its_place_is_told_of(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(StorageError, match=r"manifest\.json"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ([], "no nanogpt prepare has finished there; run the same"),
        (["train.bin"], "without a manifest: type nanogpt import-shards ids --tokenizer gpt2$"),
        (["train.bin", "meta.pkl"], "nanogpt import-shards ids --tokenizer ids/meta.pkl$"),
        (["a_train_000000.bin", "tokenizer.json"], "no nanogpt prepare has finished there"),
        (["a_train_000000.bin", ".prepare"], "no nanogpt prepare has finished there"),
        (["a_train_000000.bin", ".prepare", "tokenizer.json"], "no nanogpt prepare has finished"),
    ],
)
def test_what_a_folder_without_one_holds_says_what_to_type(
    there: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids").mkdir()
    for name in there:
        Path("ids", name).touch()
    with pytest.raises(BadDataError, match=message):
        DataFolder.open("ids")


def test_what_to_type_where_there_is_no_such_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(path: str) -> str:
        with pytest.raises(
            MissingInputError, match=f"^{path} does not exist or is no folder; "
        ) as e:
            DataFolder.open(path)
        return str(e.value).partition("; ")[2]

    own = "nanogpt prepare text --source PATH --out data/openwebtext"
    assert (
        told("data/openwebtext") == f"type: nanogpt prepare openwebtext, or of your own text: {own}"
    )
    assert told("elsewhere/mine") == "type: nanogpt prepare CORPUS --out elsewhere/mine"
    for name in ("shakespeare", "shakespeare-char"):
        shutil.copytree(folder, Path("data", name))
    assert told("shakespeare") == "data/shakespeare is there: give that"
    assert told("elsewhere/shakespear") == "did you mean data/shakespeare?"
    assert told("data/unlike") == (
        "type: nanogpt prepare unlike, or of your own text: "
        "nanogpt prepare text --source PATH --out data/unlike"
    )
