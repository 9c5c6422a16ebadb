"""What the tab key offers."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli import completing
from tests.conftest import CLONE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with two checkpoints, another elsewhere, and one data folder."""
    for run in ("out/a", "out/b", "elsewhere/c"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "config.toml").touch()
    for step in (10, 20):
        (tmp_path / f"out/a/checkpoints/step-{step:08}").mkdir()
    (tmp_path / "out/no-run").mkdir()
    (tmp_path / "data/text").mkdir(parents=True)
    (tmp_path / "data/text/manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_and_folders_that_are_there_are_offered(folder: Path) -> None:
    assert completing.presets("gpt2-1") == ["gpt2-124m", "gpt2-1558m"]
    assert "openwebtext" in completing.corpora("open")
    assert completing.runs("") == completing.runs("out/") == ["out/a", "out/b"]
    assert completing.runs("elsewhere/") == ["elsewhere/c"]
    steps = ["out/a/checkpoints/step-00000010", "out/a/checkpoints/step-00000020"]
    assert completing.runs("out/a/") == completing.runs("out/a/checkpoints/st") == steps
    assert completing.data("") == completing.data("data/t") == ["data/text"]
    assert completing.runs("no/such/") == completing.data("no/such/") == []
    assert completing.targets("out/a") == ["out/a"]


def test_a_shell_asks_the_command(folder: Path) -> None:
    environment = {
        "_NANOGPT_COMPLETE": "complete_bash",
        "COMP_WORDS": "nanogpt sample out/",
        "COMP_CWORD": "2",
    }
    line = [sys.executable, str(CLONE / "nanogpt")]
    done = subprocess.run(
        line, env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["out/a", "out/b"]
    assert done.stderr == ""
