"""`nanogpt show checkpoint`: its files with their hashes."""

import json
import shutil
from pathlib import Path

from tests.conftest import Run
from tests.nanogpt_dist.interop.models import bpe, make_run


def test_a_checkpoint_with_its_files(tmp_path: Path, nanogpt: Run) -> None:
    run = make_run(tmp_path / "run", bpe())
    shown = json.loads(nanogpt("show", "checkpoint", run, "--json").stdout)
    assert shown["step"] == 0
    assert {entry["name"] for entry in shown["files"]} >= {
        "model.safetensors",
        "state.json",
        "tokenizer.json",
    }
    assert all(len(entry["sha256"]) == 64 for entry in shown["files"])
    (run / "checkpoints" / "step-00000000" / "model.safetensors").write_bytes(b"")
    nanogpt("show", "checkpoint", run, code=65)


def test_figures_of_another_checkpoint_with_its_name_are_not_its_own(
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    run = make_run(tmp_path / "run", bpe())
    text = tmp_path / "a.txt"
    text.write_text("some text")
    nanogpt("eval", run, "--text", text)
    shown = json.loads(nanogpt("show", "checkpoint", run, "--json").stdout)
    assert list(shown["evaluations"]) == [f"text {text}"]
    results = run / "checkpoints" / "step-00000000.eval.json"
    for edited in ([], {"a": 3}):  # by hand
        kept = json.loads(results.read_text())
        results.write_text(json.dumps({**kept, "results": edited}))
        assert "model.safetensors" in nanogpt("show", "checkpoint", run).stdout
        nanogpt("eval", run, "--text", text)
    shutil.rmtree(run / "checkpoints" / "step-00000000")
    make_run(run, bpe(), n_layer=1)
    shown = json.loads(nanogpt("show", "checkpoint", run, "--json").stdout)
    assert shown["evaluations"] == {}
