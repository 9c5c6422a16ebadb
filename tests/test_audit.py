"""The lock of the development environment, and the script that compares with it."""

import importlib.util
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import CLONE


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    path = CLONE / ".ci/audit.py"
    if not path.is_file():
        pytest.skip("no .ci here: an unpacked sdist")
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_has_every_direct_dependency_with_its_sha256(audit: ModuleType) -> None:
    locked = audit.read_lock()
    asked = [line for line in metadata.requires("nanogpt-dist") or [] if "extra" not in line]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("_", "-").lower() for line in asked}
    assert names - {"torch"} <= locked.keys()
    assert "://" not in audit.LOCK.read_text(), "no address of a registry"


def test_differences_are_told_both_ways(audit: ModuleType) -> None:
    assert audit.differences({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == []
    told = audit.differences({"a": "1", "b": "2"}, {"a": "2", "c": "3"})
    assert told == [
        "a: installed 1, lock 2",
        "b: installed 2, lock not there",
        "c: installed not there, lock 3",
    ]


def test_a_changed_file_of_a_distribution_is_named(audit: ModuleType, tmp_path: Path) -> None:
    packaging = metadata.distribution("packaging")
    assert audit.changed_files(packaging) == []
    for file in packaging.files or []:
        path = tmp_path / str(file)
        if ".." not in file.parts and file.locate().is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), path)
    with (tmp_path / "packaging/version.py").open("a") as changed:
        changed.write("\n")
    (tmp_path / "packaging/tags.py").unlink()
    (copy,) = metadata.distributions(path=[str(tmp_path)])
    told = audit.changed_files(copy)
    assert told == [
        "packaging: packaging/tags.py is gone",
        "packaging: packaging/version.py is changed",
    ]


def test_without_a_source_of_advisories_that_is_said_and_is_no_failure(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> object:
        raise subprocess.TimeoutExpired("pip-audit", 1)

    monkeypatch.setattr(audit.metadata, "version", lambda name: "1")
    monkeypatch.setattr(audit.subprocess, "run", fails)
    good, told = audit.advisories()
    assert good
    assert told.startswith("could not look up advisories")


def test_a_line_without_a_sha256_is_no_lock(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lock.txt").write_text("a==1\n")
    monkeypatch.setattr(audit, "LOCK", tmp_path / "lock.txt")
    with pytest.raises(ValueError, match="is no name, version and sha256"):
        audit.read_lock()
