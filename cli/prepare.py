"""`nanogpt prepare CORPUS`: raw text to verified shards of token ids."""

import json
import os
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.bar import progress_bar
from cli.next_step import to_train
from cli.terminal import echo
from nanogpt_dist.errors import UsageError
from nanogpt_dist.signals import StopRequest

if TYPE_CHECKING:
    from nanogpt_dist.data.manifest import Manifest
    from prepare.corpora import Corpus


class SplitBy(StrEnum):
    documents = "documents"
    characters = "characters"
    shuffled = "shuffled"


class Eot(StrEnum):
    append = "append"
    prepend = "prepend"


class BadText(StrEnum):
    strict = "strict"
    replacing = "replace"
    skip = "skip"


def _option(panel: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel, **more)


def prepare(
    corpus: Annotated[
        str | None,
        typer.Argument(
            help="What to prepare; --list shows all. text: files of yours; hf: any REPO.",
            metavar="CORPUS",
            autocompletion=completing.corpora,
        ),
    ] = None,
    repo: Annotated[
        str | None,
        typer.Argument(
            help="With hf: a repository of the Hugging Face hub, OWNER/NAME.", metavar="REPO"
        ),
    ] = None,
    out: Annotated[
        Path | None, _option("Files", "Folder to write. Default: data/CORPUS.", "DIR")
    ] = None,
    source: Annotated[
        list[Path] | None,
        _option(
            "Files",
            "File, folder or 'pattern' to read: .txt .md .jsonl .ndjson .json .parquet .arrow, "
            "also .gz .zst; - for text on standard input, -.jsonl for lines. May be given several "
            "times.",
            "PATH",
        ),
    ] = None,
    column: Annotated[
        str | None, _option("Files", "Field or column that holds the text. Default: text.", "NAME")
    ] = None,
    mix: Annotated[
        str | None,
        _option(
            "Files",
            "Instead of CORPUS: several, by name or path, with their parts of the tokens.",
            "A=0.7,B=0.3",
        ),
    ] = None,
    config: Annotated[
        str | None, _option("Hub", "Configuration of the repository.", "NAME")
    ] = None,
    split: Annotated[
        str | None, _option("Hub", "Split of the repository. Default: train.", "NAME")
    ] = None,
    revision: Annotated[
        str | None,
        _option("Hub", "Branch, tag or commit. Default: the newest, which is then pinned.", "NAME"),
    ] = None,
    streaming: Annotated[
        bool,
        _option(
            "Hub",
            "Fetch files when they are needed, and keep none; else they stay in the hub's cache.",
        ),
    ] = False,
    tokenizer: Annotated[
        str | None,
        _option(
            "Tokens",
            "gpt2 | byte | char | bpe:N (N ids, learnt from the text) | cl100k_base … | FILE. "
            "Default: the corpus's.",
            "NAME",
        ),
    ] = None,
    eot: Annotated[
        Eot, _option("Tokens", "Where each document gets its end of text.")
    ] = Eot.append,
    val_fraction: Annotated[
        float | None,
        _option("Tokens", "Part kept for validation, between 0 and 1. Default: the corpus's own."),
    ] = None,
    split_by: Annotated[
        SplitBy | None,
        _option(
            "Tokens",
            "Train and val get: whole documents by their hash, two parts of one text, or rows "
            "drawn as nanoGPT does. Default: characters for a single .txt file, else documents.",
        ),
    ] = None,
    seed: Annotated[
        int, _option("Tokens", "Decides which documents are validated with.", min=0, max=2**63 - 1)
    ] = 2357,
    max_documents: Annotated[
        int | None, _option("Tokens", "Stop after that many documents.", "N", min=1)
    ] = None,
    max_tokens: Annotated[
        int | None,
        _option("Tokens", "Stop before a document that would pass that many tokens.", "N", min=1),
    ] = None,
    errors: Annotated[
        BadText,
        _option(
            "Tokens",
            "What is not UTF-8: an error, U+FFFD for each bad byte, or left out, as what is no "
            "text is; counted.",
        ),
    ] = BadText.strict,
    workers: Annotated[
        int | None,
        _option(
            "Machine",
            "Processes that encode; the result is the same. Default: one per core, at most 8.",
            "N",
            min=1,
            max=1024,
        ),
    ] = None,
    fresh: Annotated[
        bool, _option("Machine", "Start over where an unfinished run would be gone on with.")
    ] = False,
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
    from prepare.recipe import Options, parse_mix
    from prepare.units.ranks import Ranks

    on_hub = bool(config or split or revision)
    chosen, weights = _corpus(corpus, repo, mix, source, on_hub), parse_mix(mix) if mix else None
    if chosen:
        chosen = _on_hub(chosen, config, split, revision)
    StopRequest("stopped; the same command goes on where it was").listen()
    ranks = Ranks.of(os.environ)
    ranks.leave_with_launcher()
    out = out or Path("data") / (chosen.name if chosen else "mix")
    started, reused = time.monotonic(), (out / "manifest.json").exists()
    with progress_bar(ranks.is_rank0) as report:
        manifest = build(
            chosen or "text",
            out,
            source or [],
            Options(
                tokenizer=tokenizer,
                val_fraction=val_fraction,
                seed=seed,
                split_by=split_by.value if split_by else None,
                column=column,
                eot=eot.value,
                errors=errors.value,
                max_documents=max_documents,
                max_tokens=max_tokens,
            ),
            Machine(
                workers=workers,
                streaming=streaming,
                fresh=fresh,
                ranks=ranks,
                progress=report or (lambda what, done, total, tokens: None),
                note=lambda text: echo(f"note: {text}", err=True) if ranks.is_rank0 else None,
            ),
            weights,
        )
    if manifest is not None:  # else another rank tells
        _compare(manifest)
        _tell_borders(manifest)
        figures = _figures(manifest, out, time.monotonic() - started, reused)
        print(json.dumps(figures) if as_json else _summary(manifest, figures))


def _corpus(
    name: str | None,
    repo: str | None,
    mix: str | None,
    source: list[Path] | None,
    on_hub: bool,
) -> "Corpus | None":
    """What to prepare; None: a mix. Raises UsageError."""
    from prepare.corpora import find, repository

    if mix:
        if name or repo or source:
            raise UsageError(
                "--mix names all that is to be read, corpora or paths; leave CORPUS and --source "
                "out"
            )
        if on_hub:
            raise UsageError(
                "--config, --split and --revision are for one corpus; with --mix leave them out"
            )
        return None
    if name is None:
        raise UsageError(
            "which corpus? type: nanogpt prepare python-stdlib (no network) or nanogpt prepare "
            "--list"
        )
    if name == "hf":
        if repo is None:
            raise UsageError(
                "which repository? type for example: nanogpt prepare hf roneneldan/TinyStories"
            )
        return repository(repo)
    if repo is not None and name == "text":
        raise UsageError(
            f"files of yours are given as --source; type: nanogpt prepare text --source {repo[:60]}"
        )
    if repo is not None:
        raise UsageError(
            f"{repo[:60]}: one corpus at a time; several become one data set with --mix A=0.7,B=0.3"
        )
    return find(name)


def _on_hub(
    corpus: "Corpus",
    config: str | None,
    split: str | None,
    revision: str | None,
) -> "Corpus":
    from prepare.corpora import from_hub

    if split in list(SplitBy) and corpus.origin != "hub":
        raise UsageError(
            "--split names a split on the hub; for how to cut train from val type --split-by "
            f"{split}"
        )
    return from_hub(corpus, config, split, revision)


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
