"""`nanogpt prepare CORPUS`: raw text to verified shards of token ids."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_dist.errors import UsageError
from nanogpt_dist.stopping import StopRequest

if TYPE_CHECKING:
    from nanogpt_dist.shards.manifest import Manifest
    from prepare.build import Progress


class SplitOption(StrEnum):
    documents = "documents"
    characters = "characters"


def prepare(
    corpus: Annotated[
        str | None, typer.Argument(help="What to prepare; --list shows all. `text`: files of yours.", metavar="CORPUS")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: data/CORPUS.", metavar="DIR", rich_help_panel="Files")
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder to read: .txt .md .jsonl .jsonl.gz .jsonl.zst .parquet. May be given several times.",
            metavar="PATH",
            rich_help_panel="Files",
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(help="Field of .jsonl and .parquet that holds the text.", rich_help_panel="Files")
    ] = "text",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="gpt2 | byte | char | bpe:N (N ids, learnt from the text) | FILE. Default: the corpus's own.",
            metavar="NAME",
            rich_help_panel="Tokens",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Part kept for validation, between 0 and 1. Default: the corpus's own.", rich_help_panel="Tokens"
        ),
    ] = None,
    split: Annotated[
        SplitOption | None,
        typer.Option(
            help="Split by whole documents or cut one text in two. Default: characters for a single .txt file.",
            rich_help_panel="Tokens",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Decides which documents are validated with.", min=0, max=2**63 - 1, rich_help_panel="Tokens"
        ),
    ] = 2357,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that encode; the result is the same. Default: one per core, at most 8.",
            min=1,
            max=1024,
            rich_help_panel="Machine",
        ),
    ] = None,
    list_corpora: Annotated[bool, typer.Option("--list", help="List the corpora and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a summary.")] = False,
) -> None:
    """Turn a corpus into shards of token ids that `nanogpt train --dataset DIR` reads.

    Killed? Run it again. A finished folder with the same inputs and options is left as it is.
    """
    if list_corpora:
        _print_corpora(as_json)
        return
    if corpus is None:
        raise UsageError("which corpus? type: nanogpt prepare python-stdlib (no network) or nanogpt prepare --list")
    from prepare.build import build

    StopRequest("stopped, nothing is left behind; the same command starts over").listen()
    out = out or Path("data") / corpus
    started, reused = time.monotonic(), (out / "manifest.json").exists()
    with _progress_bar() as progress:
        manifest = build(
            corpus,
            out,
            sources=source or [],
            tokenizer=tokenizer,
            val_fraction=val_fraction,
            workers=workers,
            seed=seed,
            split=split.value if split else None,
            column=column,
            progress=progress,
            note=lambda text: typer.echo(f"note: {text}", err=True),
        )
    figures = _figures(manifest, out, time.monotonic() - started, reused)
    print(json.dumps(figures) if as_json else _summary(manifest, figures))


def _figures(manifest: "Manifest", out: Path, seconds: float, reused: bool) -> dict[str, str | int | float | bool]:
    import hashlib

    from nanogpt_dist.storage.durable import printable

    train, val = manifest.splits["train"], manifest.splits["val"]
    return {
        "out": printable(out),
        "dataset_id": hashlib.sha256(manifest.to_bytes()).hexdigest(),
        "train_tokens": train.tokens,
        "val_tokens": val.tokens,
        "documents": train.documents + val.documents,
        "empty_documents": manifest.counts.empty,
        "train_bytes": train.bytes,
        "val_bytes": val.bytes,
        "vocab_size": manifest.tokenizer.n_vocab,
        "tokenizer": manifest.tokenizer.name,
        "shards": len(train.shards) + len(val.shards),
        "reused": reused,
        "seconds": round(seconds, 3),
    }


def _summary(manifest: "Manifest", figures: dict[str, str | int | float | bool]) -> str:
    out = figures["out"]
    lines = [f"{out} was finished before with the same inputs and options; nothing to do." if figures["reused"] else ""]
    for name, split in manifest.splits.items():
        per_token = split.bytes / split.tokens
        lines.append(
            f"{name:5} {split.tokens:>14,} tokens  {split.documents:>10,} documents  {per_token:.2f} bytes per token"
        )
    lines.append(f"tokenizer {figures['tokenizer']}, {figures['vocab_size']:,} ids; {figures['seconds']:.1f} s")
    lines.append(f"\nNext: {_next(manifest, shlex.quote(str(out)))}")
    return "\n".join(line for line in lines if line)


def _next(manifest: "Manifest", out: str) -> str:
    """What to type next: a preset for just this data, if there is one, and its small twin for those without a GPU."""
    from nanogpt_dist.presets import PRESETS
    from prepare.corpora import find

    corpus = find(manifest.name)
    if not corpus.preset or manifest.tokenizer.spec != corpus.tokenizer:
        small = f"quickstart --vocab-size {manifest.tokenizer.n_vocab} --dataset {out} --out-dir out/{manifest.name}"
        return f"nanogpt train --dataset {out}   (without a GPU: nanogpt train {small})"
    where = "" if PRESETS[corpus.preset]["dataset"] == out else f" --dataset {out}"
    small = f"{corpus.preset}-cpu"
    without = f"   (without a GPU: nanogpt train {small}{where})" if small in PRESETS else ""
    return f"nanogpt train {corpus.preset}{where}{without}"


def _print_corpora(as_json: bool) -> None:
    from prepare.corpora import CORPORA

    if as_json:
        print(json.dumps({"corpora": {c.name: c.description for c in CORPORA.values()}}))
        return
    for corpus in CORPORA.values():
        print(f"{corpus.name:17} {corpus.description} [{corpus.tokenizer}; {corpus.licence}]")


@contextmanager
def _progress_bar() -> Iterator["Progress | None"]:
    """A bar with MB/s and the time left on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield update
