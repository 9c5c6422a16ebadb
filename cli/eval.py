"""`nanogpt eval`: the loss of a checkpoint over a whole val split."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import Device, Json

if TYPE_CHECKING:
    from nanogpt_dist.shards import DataFolder


def eval_command(
    target: Annotated[
        str | None, typer.Argument(metavar="RUN|CHECKPOINT", help="Unset: the newest run under out/.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DIR", help="Prepared folder to judge on; unset: the one it was trained on.")
    ] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Split of the data to read.")] = "val",
    best: Annotated[bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in one forward pass.")] = 16,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16: faster, at the cost of the last digits.")
    ] = "float32",
    json: Json = False,
) -> None:
    """Loss, perplexity and bits per byte over the whole val split; the same figure on any number of ranks."""
    from nanogpt_dist import runs
    from nanogpt_dist.checkpoint import load_model
    from nanogpt_dist.devices import pick_dtype
    from nanogpt_dist.distributed import connect
    from nanogpt_dist.evaluation import Evaluator, whole_split
    from nanogpt_dist.shards import DataFolder

    with connect(device, timeout_s=600) as world:
        with world.together():  # one rank chooses: a run that is still training goes on meanwhile
            chosen = str(runs.find_checkpoint(target, best, _warn)) if world.leads else ""
        found = Path(world.text_from_lead(chosen))
        with world.together():
            model, config = load_model(found, world.device)
            data = DataFolder.open(Path(dataset or config.dataset))
            check_tokenizer(found, data)
            tokens = data.split(split)
            windows = whole_split(tokens.tokens, config.block_size)
            numbers = pick_dtype(dtype, world.device)
        if world.leads:
            typer.echo(f"{found} on the {split} split of {data.path}: {tokens.tokens:,} tokens", err=True)
        result = Evaluator(tokens, windows, data.tokenizer.byte_lengths(), world, batch_size, numbers)(model)
    if not world.leads:
        return
    if json:
        where = {"checkpoint": str(found), "dataset": str(data.path), "split": split}
        figures = asdict(result)
        if split == "train":
            figures = {"train_loss" if name == "val_loss" else name: value for name, value in figures.items()}
        typer.echo(runs.to_json({**figures, **where}))
        return
    typer.echo(f"loss        {result.val_loss:.4f} ± {result.standard_error:.4f} nats/token")
    typer.echo(f"perplexity  {result.perplexity:.2f}")
    typer.echo(f"bits/byte   {result.bits_per_byte:.4f}")
    typer.echo(f"tokens      {result.tokens:,}")


def check_tokenizer(found: Path, data: "DataFolder") -> None:
    """Raises BadDataError where the data was tokenized by another tokenizer than the checkpoint's."""
    from nanogpt_dist.checkpoint import load_checkpoint_tokenizer
    from nanogpt_dist.errors import BadDataError

    ours = load_checkpoint_tokenizer(found)
    if ours.fingerprint != data.tokenizer.fingerprint:
        raise BadDataError(
            f"{data.path} is tokenized with {data.tokenizer.name} ({data.tokenizer.n_vocab} ids), {found.name} was "
            f"trained with another one, {ours.name} ({ours.n_vocab} ids): "
            f"prepare it again with --tokenizer {found / 'tokenizer.json'}"
        )


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)
