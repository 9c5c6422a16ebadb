"""Checkpoints beside the training, and on SIGTERM."""

import json
import signal
import subprocess
import time
from pathlib import Path

from nanogpt_dist import storage
from tests.conftest import Run, command
from tests.gpu.conftest import Measured
from tests.gpu.machine import SIMULATED
from tests.gpu.runs import tensor_hashes, train, train_flags

# large enough for a save to take longer than a step
LARGE = {} if SIMULATED else {"n_layer": 8, "n_head": 8, "n_embd": 512}
SAVES = (2, 4, 6, 8)


def test_an_async_save_holds_the_state_of_its_step(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    """The weights and moments that a run has which stands still for each save."""
    common = {"dtype": "bfloat16", "deterministic": True, "save_interval": 2, **LARGE}
    for beside in (True, False):
        train(nanogpt, corpus, tmp_path / str(beside), async_save=beside, **common)
    found = {step: tensor_hashes(tmp_path / "True", step) for step in SAVES}
    assert all(found.values())
    measured.note(files={step: len(files) for step, files in found.items()})
    assert found == {step: tensor_hashes(tmp_path / "False", step) for step in SAVES}


def test_sigterm_in_a_step_saves_within_5_seconds(
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    run = tmp_path / "run"
    steps = {"max_iters": 10**6, "eval_interval": 10**6, "gradient_accumulation_steps": 32}
    line = train_flags(corpus, run, dtype="bfloat16", **{**steps, **LARGE})
    process = subprocess.Popen(
        command(*line, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while steps_logged(run) < 5:
            assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
            assert time.monotonic() < deadline, "no fifth step in four minutes"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        told, errors = process.communicate(timeout=120)
        took = time.monotonic() - asked
    finally:
        process.kill()
    assert process.returncode == 75, errors[-3000:]
    said = json.loads(told)
    assert said["verdict"] == "stopped"
    newest = storage.list_steps(run / "checkpoints")[0]
    assert storage.step_of(newest.name) == said["step"]
    assert storage.verify(newest) == []
    measured.note(seconds=round(took, 2), step=said["step"])
    measured.on_hardware(took <= 5, "the process has saved and left within 5 s")


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0
