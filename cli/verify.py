"""`nanogpt verify DIR`: every byte of a data folder against its manifest."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import completing
from cli.bar import byte_bar
from cli.options import Json
from cli.terminal import echo
from nanogpt_dist.errors import BadDataError, UsageError

if TYPE_CHECKING:
    from nanogpt_dist.data.manifest import Manifest

NAMED = 5  # files that a note names


def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            autocompletion=completing.data,
            help="A data folder, e.g. data/openwebtext.",
        ),
    ],
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Files read at a time. Default: one per core, at most 8."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a data folder: manifest, tokenizer, every shard.

    The small files beside the shards are checked, too.

    Of a damaged shard it names each damaged MiB. Returns 65 where anything is bad.

    Training checks what it reads by itself, each MiB as it comes to it; this checks everything now.
    """
    _refuse_runs(folder)
    from nanogpt_dist.data.manifest import MANIFEST, Manifest
    from nanogpt_dist.data.verify import in_short, verify_files

    try:
        manifest, _ = Manifest.read(folder)
    except BadDataError as error:
        if as_json:
            _report(folder, 1, [(MANIFEST, str(error))], as_json)
        raise
    with byte_bar("verify") as progress:
        bad = verify_files(folder, manifest, progress, threads)
    _note_unlisted(folder, manifest)
    files = len(manifest.files()) + 1
    _report(folder, files, bad, as_json)
    if bad:
        count = f"{len(bad)} of {files} files are" if len(bad) > 1 else "one file is"
        raise BadDataError(
            f"{count} bad: {in_short(folder, *bad[0])}{', …' if len(bad) > 1 else ''}; restore a "
            "copy, or prepare again"
        )


def _refuse_runs(folder: Path) -> None:
    if any((folder / name).exists() for name in ("state.json", "checkpoints", "run.json")):
        raise UsageError(
            f"{str(folder)[-60:]} is a run or a checkpoint: type nanogpt checkpoint verify "
            f"{str(folder)[-60:]}"
        )


def _report(folder: Path, files: int, bad: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        listed = [{"file": name, "reason": reason} for name, reason in bad]
        echo(json.dumps({"ok": not bad, "files": files, "bad": listed}))
    elif bad:
        echo("\n".join(f"bad  {name}: {reason}" for name, reason in bad))
    else:
        echo(f"{folder}: all {files} files are good")


def _note_unlisted(folder: Path, manifest: "Manifest") -> None:
    from nanogpt_dist.data.verify import unlisted_files

    if names := unlisted_files(folder, manifest):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        echo(
            f"note: not in the manifest, so not checked: {', '.join(names[:NAMED])}{more}", err=True
        )
