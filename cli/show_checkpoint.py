"""`nanogpt show checkpoint`: where a checkpoint stands, and its files with their hashes."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completing
from cli.options import Json, warn
from cli.terminal import echo


def checkpoint(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            autocompletion=completing.runs,
            help="Unset: the newest run under out/.",
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Where a checkpoint stands: step, losses, data, and its files, verified.

    Each file has its sha256.
    """
    from nanogpt_dist import storage
    from nanogpt_dist.storage import run_checkpoints, run_folder
    from nanogpt_dist.storage.eval_results import read_results

    def read(found: Path) -> Any:
        state, manifest = run_folder.read_json(found / "state.json"), storage.read_manifest(found)
        return found, state, manifest, read_results(found)

    folder, state, manifest, evaluations = run_checkpoints.read_checkpoint(target, read, best, warn)
    named = run_folder.canonical_path(folder)
    if as_json:
        facts: dict[str, Any] = {
            "checkpoint": str(folder),
            "step": storage.step_of(named.name),
            **state,
        }
        found = {**facts, "files": manifest["files"], "evaluations": evaluations}
        echo(run_folder.to_json(found))
        return
    echo(f"{folder}")
    for key, value in state.items():
        shown = json.dumps(value) if isinstance(value, dict) else value
        echo(
            f"  {key:<24} {f'{value:,}' if type(value) is int else '–' if value is None else shown}"
        )
    if verdict := run_folder.verdict_of(run_folder.run_of(folder)):
        echo(f"  {'run':<24} {verdict}")
    echo("")
    for entry in manifest["files"]:
        echo(f"  {entry['sha256'][:16]}…  {entry['bytes']:>14,} bytes  {entry['name']}")
    for number, (what, figures) in enumerate(evaluations.items()):
        values = ", ".join(
            f"{key} {value:.4f}" for key, value in figures.items() if isinstance(value, float)
        )
        echo(("" if number else "\n") + f"  {what}: {values}")
