"""`nanogpt prepare CORPUS`: raw text to verified shards of token ids."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.bar import progress_bar
from cli.next_step import to_train
from cli.options import takes_settings
from cli.terminal import echo
from nanogpt_dist.signals import StopRequest
from prepare.options import FLAGS, PrepareConfig

if TYPE_CHECKING:
    from nanogpt_dist.data.manifest import Manifest


FIELDS = PrepareConfig.model_fields


@takes_settings(PrepareConfig, groups=FLAGS, with_defaults=True)
def prepare(
    settings: dict[str, Any],
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="CORPUS",
            autocompletion=completing.corpora,
            help=FIELDS["corpus"].description,
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help=FIELDS["repo"].description)
    ] = None,
    list_corpora: Annotated[
        bool, typer.Option("--list", help="List the corpora and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a summary.")
    ] = False,
) -> None:
    """Turn a corpus into shards of token ids that `nanogpt train --dataset DIR` reads.

    Killed? Run it again: it goes on where it was. A finished folder with the same inputs and
    options is left as it is. Under torchrun, or as a Slurm array, the ranks share the work.
    """
    if list_corpora:
        _print_corpora(as_json)
        return
    from prepare.build import Machine, build
    from prepare.request import output_folder
    from prepare.units.ranks import Ranks

    config = PrepareConfig(corpus=corpus, repo=repo, **settings)
    out = output_folder(config)
    StopRequest("stopped; the same command goes on where it was").listen()
    ranks = Ranks.of(os.environ)
    ranks.leave_with_launcher()
    started, reused = time.monotonic(), (out / "manifest.json").exists()
    with progress_bar(ranks.is_rank0) as report:
        machine = Machine(
            ranks=ranks,
            progress=report or (lambda what, done, total, tokens: None),
            note=lambda text: echo(f"note: {text}", err=True) if ranks.is_rank0 else None,
        )
        manifest = build(config, machine)
    if manifest is None:  # a rank that only encodes: rank 0 prints
        return
    _compare(manifest)
    _tell_borders(manifest)
    figures = _figures(manifest, out, time.monotonic() - started, reused)
    print(json.dumps(figures) if as_json else _summary(manifest, figures))


def _compare(manifest: "Manifest") -> None:
    """A note where a corpus with known figures has given others: then its text has changed."""
    from prepare.corpora import CORPORA

    corpus = CORPORA.get(manifest.name)
    if corpus is None or manifest.max_documents or manifest.max_tokens:
        return
    documents = sum(split.documents for split in manifest.splits.values())
    tokens = manifest.splits["train"].tokens, manifest.splits["val"].tokens
    usual = manifest.tokenizer.spec == corpus.tokenizer and manifest.sources[0].split is not None
    if corpus.documents not in (None, documents):
        echo(
            f"note: {corpus.name} is known to have {corpus.documents:,} documents, not "
            f"{documents:,}",
            err=True,
        )
    elif corpus.tokens not in (None, tokens) and usual:
        echo(
            f"note: {corpus.name} is known to give {corpus.tokens[0]:,} + {corpus.tokens[1]:,} "
            "tokens",
            err=True,
        )


def _tell_borders(manifest: "Manifest") -> None:
    """A note where documents follow each other without a border, as the tokenizer has none."""
    documents = sum(split.documents for split in manifest.splits.values())
    rules = {source.split.rule for source in manifest.sources if source.split}
    if manifest.tokenizer.eot_id is None and documents > 1 and rules != {"characters"}:
        name = manifest.tokenizer.name
        echo(
            f"note: {name} has no end of text: nothing stands between the {documents:,} documents",
            err=True,
        )


def _figures(manifest: "Manifest", out: Path, seconds: float, reused: bool) -> dict[str, Any]:
    import hashlib

    from nanogpt_dist.storage.durable import printable

    train, val = manifest.splits["train"], manifest.splits["val"]
    rate = 0.0 if reused else 1 / max(seconds, 1e-9)
    return {
        "out": printable(out),
        "dataset_id": hashlib.sha256(manifest.to_bytes()).hexdigest(),
        "train_tokens": train.tokens,
        "val_tokens": val.tokens,
        "documents": train.documents + val.documents,
        "empty_documents": manifest.counts.empty,
        "replaced_documents": manifest.counts.replaced,
        "skipped_documents": manifest.counts.skipped,
        "train_bytes": train.bytes,
        "val_bytes": val.bytes,
        "vocab_size": manifest.tokenizer.n_vocab,
        "tokenizer": manifest.tokenizer.name,
        "shards": len(train.shards) + len(val.shards),
        "reused": reused,
        "seconds": round(seconds, 3),
        "mb_per_second": round((train.bytes + val.bytes) / 1e6 * rate, 3),
        "tokens_per_second": round((train.tokens + val.tokens) * rate),
    }


def _summary(manifest: "Manifest", figures: dict[str, str | int | float | bool]) -> str:
    out = figures["out"]
    lines = [
        f"{out} was finished before with the same inputs and options; nothing to do."
        if figures["reused"]
        else ""
    ]
    for name, split in manifest.splits.items():
        per_token = split.bytes / split.tokens
        lines.append(
            f"{name:5} {split.tokens:>14,} tokens  {split.documents:>10,} documents  "
            f"{per_token:.2f} bytes per token"
        )
    for what in ("replaced", "skipped"):
        if count := figures[f"{what}_documents"]:
            lines.append(
                f"{what}{count:>14,} documents, which are not text as it should be (--errors)"
            )
    lines.append(
        f"tokenizer {figures['tokenizer']}, {figures['vocab_size']:,} ids; "
        f"{figures['seconds']:.1f} s"
    )
    lines.append(f"\n{to_train(manifest, str(out))}")
    return "\n".join(line for line in lines if line)


def _print_corpora(as_json: bool) -> None:
    from prepare.corpora import CORPORA

    if as_json:
        print(json.dumps({"corpora": {c.name: asdict(c) for c in CORPORA.values()}}))
        return
    for c in CORPORA.values():
        size = f"{c.documents:,} documents; " if c.documents else ""
        tokens = f"{c.tokens[0]:,} + {c.tokens[1]:,} tokens; " if c.tokens else ""
        split = {
            "documents": "by hash",
            "characters": "by characters",
            "shuffled": "drawn by rows",
            None: "by hash, one .txt cut in two",
        }
        fetched = f"{c.bytes / 1e6:,.1f} MB to fetch; " if c.bytes else ""
        source = f" [{c.address}]" if c.origin == "hub" else ""
        print(f"{c.name:17} {c.description}{source}")
        print(
            f"{'':17} {size}{fetched}{tokens}{c.tokenizer}; val {c.val_fraction:g} "
            f"{split[c.split]}; {c.licence}"
        )
    print(
        "hf OWNER/NAME     Any other repository of text on the Hugging Face hub (--config, "
        "--split, --column)"
    )
