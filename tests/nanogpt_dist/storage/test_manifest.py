"""The manifest of a sealed folder: one made to harm opens nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.manifest import MAX_MANIFEST, _last_line

ENTRY: dict[str, object] = {"name": "x", "bytes": 0, "sha256": "0" * 64}


NAMES = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\n", ".x", "é", "manifest.json", 1]
WRONG: list[dict[str, object]] = [
    {"bytes": -1},
    {"bytes": True},
    {"bytes": 1.0},
    {"sha256": "0" * 63},
    {"sha256": "A" * 64},
    {"more": 1},
]


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the manifest and makes its own sha256 agree again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    head = json.dumps(manifest, indent=1).removesuffix("\n}").encode()
    (folder / "manifest.json").write_bytes(head + _last_line(head))


@pytest.mark.parametrize(
    "files",
    [
        None,
        {},
        [1],
        [{}],
        [ENTRY, {}],
        [ENTRY, ENTRY],
        *([{**ENTRY, **wrong}] for wrong in [*WRONG, *[{"name": name} for name in NAMES]]),
    ],
)
def test_a_manifest_made_to_harm_is_refused(folder: Path, files: object) -> None:
    forge(folder, lambda manifest: manifest.update(files=files))
    with pytest.raises(BadDataError, match=r"manifest\.json lists a file"):
        storage.read_manifest(folder)
    assert [name for name, _ in storage.verify(folder)] == ["manifest.json"]


@pytest.mark.parametrize("body", [b"1e999", b"NaN", b"1" * 5000, b"[" * 100_000, b'"\xff"', b"{"])
def test_json_that_is_not_plain_is_refused(folder: Path, body: bytes) -> None:
    head = b'{\n "format": 1,\n "files": [],\n "x": ' + body
    (folder / "manifest.json").write_bytes(head + _last_line(head))
    with pytest.raises(BadDataError, match="is not JSON as this program writes it"):
        storage.read_manifest(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with open(folder / "manifest.json", "r+b") as file:
        file.truncate(10 << 30)  # sparse
    assert storage.verify(folder) == [("manifest.json", "is larger than 4,194,304 bytes")]


def test_a_manifest_is_read_up_to_its_bound(folder: Path) -> None:
    for more in (0, 1):
        forge(folder, lambda manifest: manifest.update(padding=""))
        missing = MAX_MANIFEST + more - (folder / "manifest.json").stat().st_size
        forge(folder, lambda manifest, n=missing: manifest.update(padding="x" * n))  # type: ignore[misc]
        assert (folder / "manifest.json").stat().st_size == MAX_MANIFEST + more
        told = [("manifest.json", "is larger than 4,194,304 bytes")] if more else []
        assert storage.verify(folder) == told


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1])
def test_a_format_that_is_no_number_from_1_on_is_refused(folder: Path, version: object) -> None:
    forge(folder, lambda manifest: manifest.update(format=version))
    assert storage.verify(folder) == [("manifest.json", "names no format version")]


def test_people_can_read_it_and_a_number_that_json_does_not_have_is_not_in_it(
    folder: Path,
) -> None:
    assert (folder / "manifest.json").read_text().startswith('{\n "format": 1,\n "step": 7,\n')
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.commit(folder.parent, "other", lambda staging: None, {"loss": float("nan")})
    assert os.listdir(folder.parent) == [folder.name]


def test_a_newer_format_is_neither_good_nor_damaged(folder: Path) -> None:
    forge(folder, lambda manifest: manifest.update(format=2))
    for use in (storage.read_manifest, storage.verify, storage.require_good):
        with pytest.raises(
            storage.NewerFormatError, match=r"format 2, newer than 1, .*; in your clone type: git"
        ):
            use(folder)
