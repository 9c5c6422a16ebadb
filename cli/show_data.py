"""`nanogpt show data DIR`: a data folder, one of its documents, or the sequences of a step."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, create_model

from cli import completing
from cli.options import Json, takes_settings
from cli.terminal import echo, echo_text
from nanogpt_dist.config import TrainConfig, read_toml, resolve
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError, one_line

if TYPE_CHECKING:
    from nanogpt_dist.api import Dataset
    from nanogpt_dist.data.manifest import CorpusRecord, Manifest

TEXT_CHARS = 60  # of a sequence, on its line
TEXT_IDS = 256  # more than enough for them

# they and the data fix what is read when
ORDER = ("seed", "block_size", "batch_size", "gradient_accumulation_steps")
IF_SET = ("batch_ramp", "context_ramp", "align_documents")
FIELDS = {
    name: (TrainConfig.model_fields[name].annotation, TrainConfig.model_fields[name])
    for name in ORDER + IF_SET
}
OrderSettings: type[BaseModel] = create_model("OrderSettings", **FIELDS)  # type: ignore[call-overload]


@takes_settings(OrderSettings, panel="Order of the data, without --run")
def data(
    settings: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            autocompletion=completing.data,
            help="A data folder, e.g. data/openwebtext.",
        ),
    ],
    document: Annotated[
        int | None,
        typer.Option(
            metavar="I", min=0, help="Print the text of a document of the split; the first is 0."
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val"] | None, typer.Option(help="For --document. Default: train.")
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            min=0,
            max=2**40,
            help="List the sequences of the step after S steps, over all ranks; 0 "
            "is the first. In metrics.jsonl it is step S + 1.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="For --step: the run whose settings count, e.g. out/gpt2-124m."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a data folder holds; one of its documents; or the sequences of a training step."""
    _refuse_mixed(document, split, step, run, settings)
    from nanogpt_dist.api import open_dataset

    opened = open_dataset(folder)
    found: dict[str, Any] = {}
    if document is not None:
        found["document"] = _document(opened, split or "train", document)
    if step is not None:
        config = resolve(settings) if run is None else _config_of(run, opened)
        found |= _sequences(opened, config, step)
    if as_json:
        figures = opened.manifest.model_dump(mode="json")
        echo(json.dumps({**figures, "dataset_id": opened.dataset_id, **found}))
    elif document is not None:
        echo_text(found["document"]["text"])
    elif step is not None:
        echo("\n".join(_step_lines(found)))
    else:
        echo("\n".join(_summary(opened.manifest, opened.dataset_id)))


def _refuse_mixed(
    document: int | None,
    split: str | None,
    step: int | None,
    run: Path | None,
    settings: dict[str, Any],
) -> None:
    """Raises UsageError for flags that do not go together."""
    if document is not None and step is not None:
        raise UsageError("--document and --step are two questions; ask one")
    if split is not None and document is None:
        raise UsageError("--split is for --document; training reads train only")
    if step is None and (run is not None or settings):
        raise UsageError("--run and the settings are for --step; type --step 0 for the first step")
    if run is not None and settings:
        names = ", ".join("--" + name.replace("_", "-") for name in settings)
        raise UsageError(f"--run gives the settings; leave {names} out")


def _config_of(run: Path, opened: "Dataset") -> TrainConfig:
    """The settings of a run that was trained on that data.

    Raises: MissingInputError, BadDataError, ConfigError.
    """
    from nanogpt_dist import storage
    from nanogpt_dist.storage import run_folder

    if not (run / "config.toml").is_file():
        raise MissingInputError(
            f"{str(run)[-80:]} is no run, it has no config.toml; give one, e.g. out/gpt2-124m"
        )
    config = resolve(read_toml(run / "config.toml"))
    steps = (
        [run]
        if (run / "state.json").exists()
        else storage.list_steps(run_folder.checkpoints_of(run))
    )
    trained_on = run_folder.read_json(steps[0] / "state.json").get("dataset_id") if steps else None
    if trained_on is None:
        echo(
            f"note: {run} has no checkpoint, which would tell whether it reads {opened.path}",
            err=True,
        )
    elif trained_on != opened.dataset_id:
        raise BadDataError(
            f"{run} was trained on data set {str(trained_on)[:12]}, {opened.path} is "
            f"{opened.dataset_id[:12]}; give {config.dataset[-60:]}, if it is still the same"
        )
    return config


def _document(data: "Dataset", split: Literal["train", "val"], number: int) -> dict[str, Any]:
    ids = data.split(split).documents.ids(number)
    text = data.tokenizer.decode(ids)
    return {"split": split, "document": number, "tokens": len(ids), "text": text}


def _sequences(data: "Dataset", config: TrainConfig, step: int) -> dict[str, Any]:
    """The sequences of a training step, over all ranks.

    documents: the first and the last of all ids, with the last target.
    """
    given = {name: getattr(config, name) for name in IF_SET if getattr(config, name)}
    starts = data.window_starts(
        step,
        batch_size=config.global_batch_size,
        block_size=config.block_size,
        seed=config.seed,
        **given,
    )
    train, length, sequences = data.train, config.ramp.at(step).length + 1, []
    for index, start in enumerate(starts.tolist()):
        text = data.tokenizer.decode(train.read(start, min(length, TEXT_IDS)))
        first, last = train.documents.overlapping(start, length)
        line = one_line(text, len(text) + 1)[:TEXT_CHARS]
        sequences.append({"index": index, "start": start, "documents": [first, last], "text": line})
    order = {name: getattr(config, name) for name in ORDER} | given
    return {"step": step, "order": order, "sequences": sequences}


def _step_lines(found: dict[str, Any]) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in found["order"].items())
    lines = [
        f"step after {found['step']:,} steps; {settings}",
        "index        start  documents          text",
    ]
    for sequence in found["sequences"]:
        first, last = sequence["documents"]
        documents = f"{first:,}" if first == last else f"{first:,} … {last:,}"
        lines.append(
            f"{sequence['index']:5} {sequence['start']:>12,}  {documents:<17}  {sequence['text']}"
        )
    return lines


def _summary(manifest: "Manifest", dataset_id: str) -> list[str]:
    tokenizer, counts = manifest.tokenizer, manifest.counts
    lines = [f"{manifest.name}, data set {dataset_id}", ""]
    lines.append("split          tokens    documents           bytes  bytes/token  shards")
    for name, split in manifest.splits.items():
        counted = f"{name:5} {split.tokens:>15,} {split.documents:>12,} {split.bytes:>15,}"
        lines.append(f"{counted} {split.bytes / split.tokens:>12.3f} {len(split.shards):>7,}")
    limits = {"documents": manifest.max_documents, "tokens": manifest.max_tokens}
    asked = ", ".join(f"{limit:,} {what}" for what, limit in limits.items() if limit is not None)
    layouts = sorted({shard.layout for split in manifest.splits.values() for shard in split.shards})
    places = {"append": "behind each document", "prepend": "before each document", None: "nowhere"}
    lines += [
        "",
        f"tokenizer    {tokenizer.name} ({tokenizer.spec}), {tokenizer.n_vocab:,} ids, "
        f"{tokenizer.fingerprint[:12]}",
        f"end of text  {places[manifest.eot]}"
        + ("" if tokenizer.eot_id is None else f", id {tokenizer.eot_id}"),
        f"layout       {', '.join(layouts)}",
        f"not UTF-8    {manifest.errors}",
        f"documents    {counts.empty:,} empty, {counts.replaced:,} with replaced bytes, "
        f"{counts.skipped:,} skipped, {counts.special:,} with the text of a special token",
        f"limit        {asked or 'none'}",
    ]
    for source in manifest.sources:
        lines += ["", *_source(source)]
    return lines


def _source(source: "CorpusRecord") -> list[str]:
    share = "" if source.weight is None else f", asked for {source.weight:.1%} of all tokens"
    where = f"{source.address or 'your files'}" + (
        f" at {source.revision}" if source.revision else ""
    )
    rule = source.split
    size = sum(file.bytes for file in source.files)
    return [
        f"source       {source.corpus}: {source.description}",
        f"  gave       {source.tokens:,} tokens in {source.documents:,} documents{share}",
        f"  from       {where}" + (f", column {source.column}" if source.column else ""),
        f"  licence    {source.licence}",
        f"  files      {len(source.files):,}, {size:,} bytes",
        "  split      "
        + (
            f"by {rule.rule}, {rule.val_fraction:g} for val, seed {rule.seed}"
            if rule
            else "as it came"
        ),
    ]
