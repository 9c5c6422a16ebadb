"""`nanogpt import-shards`: ids that nanoGPT or llm.c wrote, as a data folder, without a copy."""

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.bar import byte_bar
from cli.next_step import to_train
from cli.options import Json
from cli.terminal import echo
from nanogpt_dist.signals import StopRequest


def import_shards(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Files of ids, or a folder of .bin files.", show_default=False
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What made the ids: gpt2 | byte | FILE.", show_default=False
        ),
    ],
    val: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A file for validation; may be given several times. Default: by the names.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for hard links to the files, or copies where there can be none. Default: "
            "where they lie.",
        ),
    ] = None,
    eot: Annotated[
        Literal["append", "prepend"] | None,
        typer.Option(
            help="Where end of text stands in a document. Default: append, with llm.c's header "
            "prepend."
        ),
    ] = None,
    uint32: Annotated[
        bool | None,
        typer.Option(
            "--uint32/--no-uint32",
            help="Files without a header hold 32-bit ids, or 16-bit ones. Default: 16-bit.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a data folder of token files that nanoGPT or llm.c wrote, without a copy.

    nanoGPT's train.bin and val.bin are read, and the shards of llm.c and modded-nanogpt.

    Nothing is copied. Each file is read once and checked; manifest.json, tokenizer.json and two
    small files for each shard come beside them, and `nanogpt train --dataset DIR` reads the folder.

    Names with `train` or `val` in them tell what a file is for; shards are taken in the order of
    their numbers.
    """
    from nanogpt_dist.data.importing import import_shards as run

    StopRequest("stopped; the same command starts over").listen()
    started = time.monotonic()
    with byte_bar("import") as progress:
        folder, manifest = run(
            files,
            tokenizer,
            val or [],
            out,
            eot,
            uint32,
            progress,
            lambda text: echo(f"note: {text}", err=True),
        )
    train, kept = manifest.splits["train"], manifest.splits["val"]
    seconds = time.monotonic() - started
    if as_json:
        import hashlib

        from nanogpt_dist.storage.durable import printable

        figures = {
            "out": printable(folder),
            "dataset_id": hashlib.sha256(manifest.to_bytes()).hexdigest(),
            "train_tokens": train.tokens,
            "val_tokens": kept.tokens,
            "documents": train.documents + kept.documents,
            "vocab_size": manifest.tokenizer.n_vocab,
            "tokenizer": manifest.tokenizer.name,
            "eot": manifest.eot,
            "shards": len(train.shards) + len(kept.shards),
            "seconds": round(seconds, 3),
        }
        echo(json.dumps(figures))
        return
    for name, split in manifest.splits.items():
        echo(
            f"{name:5} {split.tokens:>14,} tokens  {split.documents:>10,} documents  "
            f"{len(split.shards)} shards"
        )
    echo(
        f"tokenizer {manifest.tokenizer.name}, end of text: {manifest.eot or 'none'}; "
        f"{seconds:.1f} s"
    )
    echo(f"\n{to_train(manifest, str(folder))}")
