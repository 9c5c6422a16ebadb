"""Commands that read a run which goes on meanwhile, and prunes what they read."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.storage import run_checkpoints


@pytest.mark.parametrize(
    "typed",
    [
        "show checkpoint run",
        "export hf run out",
        "export nanogpt run ckpt.pt",
        "eval run --dataset {corpus} --device cpu",
        "sample run --max-new-tokens 2 --device cpu",
    ],
)
def test_the_next_checkpoint_is_read_where_the_first_is_pruned(
    typed: str,
    trained: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    find, found = run_checkpoints.find_checkpoint, []

    def find_and_prune(*given: Any) -> Path:
        found.append(find(*given))
        if len(found) == 1:
            shutil.rmtree(found[0])
        return found[-1]

    monkeypatch.setattr(run_checkpoints, "find_checkpoint", find_and_prune)
    done = CliRunner().invoke(app, shlex.split(typed.format(corpus=corpus)))
    assert done.exit_code == 0, done.output
    assert [path.name for path in found] == ["step-00000008", "step-00000004"]
    assert "step-00000004" in done.output or "step 4" in done.output
