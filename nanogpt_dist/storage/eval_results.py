"""CHECKPOINT.eval.json: what `nanogpt eval` found of a checkpoint, in the folder where that lies.

{"checkpoint": name, "manifest": sha256 that the checkpoint's manifest gives of itself,
"results": {what: figures}}. No torch.
"""

from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.storage import run_folder

Results = dict[str, dict[str, Any]]


def read_results(checkpoint: Path) -> Results:
    """What was found of `checkpoint`; {} where the file tells of another that had its name."""
    content = run_folder.read_json(_path(checkpoint))
    results = content.get("results")
    of_this = content.get("manifest") == storage.read_manifest(checkpoint)["sha256"]
    if not of_this or not isinstance(results, dict):
        return {}
    return {what: figures for what, figures in results.items() if isinstance(figures, dict)}


def save_results(checkpoint: Path, results: Results) -> Path:
    """Write `results` into the file beside the checkpoint, and return its path.

    Results of the same names are replaced, others stay.
    """
    path = _path(checkpoint)
    content = {
        "checkpoint": run_folder.canonical_path(checkpoint).name,
        "manifest": storage.read_manifest(checkpoint)["sha256"],
        "results": {**read_results(checkpoint), **results},
    }
    run_folder.write_json(path, content)
    return path


def _path(checkpoint: Path) -> Path:
    named = run_folder.canonical_path(checkpoint)
    return named.with_name(f"{named.name}.eval.json")
