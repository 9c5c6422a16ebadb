"""What has to hold of a run after a fault."""

import json
from pathlib import Path

from nanogpt_dist import storage
from tests.nanogpt_dist.small import records


def tensors(run: Path, step: int) -> dict[str, str]:
    """The sha256 of the files of weights and moments of one checkpoint."""
    path = run / "checkpoints" / storage.step_name(step)
    entries = json.loads((path / "manifest.json").read_text())["files"]
    return {
        entry["name"]: entry["sha256"]
        for entry in entries
        if entry["name"].endswith(".safetensors")
    }


def steps(run: Path) -> list[int]:
    """The steps of its checkpoints, the newest first."""
    found = storage.list_steps(run / "checkpoints") if (run / "checkpoints").exists() else []
    return [storage.step_of(path.name) or 0 for path in found]


def all_good(run: Path) -> None:
    """Each checkpoint verifies, and `latest`, if there is one, names one of them."""
    for path in storage.list_steps(run / "checkpoints"):
        assert not (why := storage.verify(path)), f"{path.name}: {why}"


def same_end(run: Path, whole: Path, step: int) -> None:
    """Its weights and moments are those of the undisturbed run; it has logged each step once."""
    assert tensors(run, step) == tensors(whole, step), "the end is another"
    assert losses(run) == losses(whole), "other losses were logged"


def losses(run: Path) -> list[tuple[float, float]]:
    """Each step with its loss, as they stand in metrics.jsonl."""
    return [(line["step"], line["loss"]) for line in records(run) if "loss" in line]


def clean(stderr: str) -> None:
    """What a command has said: no traceback, no line longer than an error line may be."""
    assert "Traceback" not in stderr, stderr[-1000:]


def same_losses(run: Path, other: Path, relative: float = 1e-5) -> None:
    """Both have logged each step once, with losses that differ by rounding alone."""
    ours, theirs = losses(run), losses(other)
    assert [step for step, _ in ours] == [step for step, _ in theirs], "other steps"
    for (step, one), (_, two) in zip(ours, theirs, strict=True):
        assert abs(one - two) <= relative * abs(two), f"step {step}: loss {one}, not {two}"
