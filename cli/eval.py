"""`nanogpt eval`: the loss of checkpoints over a split, and their tasks and texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import completing
from cli.ending import exit_with
from cli.options import Device, InitFrom, Json, WeightsOf, refuse_both, refuse_ema, warn
from cli.terminal import echo, echo_table, fits

if TYPE_CHECKING:
    from rich.table import Table

    from nanogpt_dist.config import TrainConfig
    from nanogpt_dist.distributed.world import World
    from nanogpt_dist.evaluation.report import LoadedModel

NAMED = 16  # columns of a checkpoint's name, at least, beside its figures

Results = dict[str, dict[str, Any]]  # what was evaluated → figures


def eval_command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT|PRESET",
            autocompletion=completing.targets,
            help="Several make a table. Unset: the newest run under out/. A preset: one with "
            "weights, as eval-gpt2.",
        ),
    ] = None,
    init_from: InitFrom = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            autocompletion=completing.data,
            help="Prepared folder to judge on; unset: the one it was trained on.",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val"] | None,
        typer.Option(help="Split of the data to read; unset: val.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Instead of the loss: lm-eval's tasks by name or PATH.yaml; hellaswag=FILE.jsonl, "
            "lambada=FILE.jsonl.",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Instead of the loss: bits per byte of a text file; may be given again.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task at most.")] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="With foreign weights: a context shorter than theirs.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")
    ] = False,
    weights: WeightsOf = "model",
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in one forward pass.")] = 16,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(
            help="bfloat16, and tf32 on a GPU that has it: faster, at the cost of the last digits."
        ),
    ] = "float32",
    json: Json = False,
) -> None:
    """Loss, perplexity and bits per byte over the val split, or tasks and texts.

    The figures are the same on any number of ranks.

    What is found is also written to CHECKPOINT.eval.json, beside the checkpoint.
    """
    from nanogpt_dist.data import DataFolder
    from nanogpt_dist.distributed.world import connect
    from nanogpt_dist.evaluation import report
    from nanogpt_dist.evaluation.tasks import jsonl_tasks

    rows = []
    with connect(device, timeout_s=600, exit_with=exit_with) as world:
        refuse_both(targets, init_from)
        names = _task_names(tasks, world)
        _refuse_unread(dataset, split, tasks, text, limit)
        split = split or "val"
        for target in [*targets] if targets else [None]:
            loaded = _load_model(target, init_from, block_size, best, world, weights)
            world.settle()  # nothing is compiled here
            results: Results = {}
            if not (tasks or text) or dataset:
                with world.raise_on_all_ranks():
                    data = DataFolder.open(Path(dataset or _dataset_of(loaded)))
                if world.is_rank0:
                    which = ", averaged weights," if weights == "ema" else ""
                    echo(f"{loaded.name}{which} on the {split} split of {data.path}", err=True)
                figures = report.split_loss(
                    loaded, data, split, report.EvalSettings(world, batch_size, dtype)
                )
                results[f"{split} of {data.path}"] = {
                    **figures,
                    "dataset": str(data.path),
                    "split": split,
                    "weights": weights,
                }
            if tasks or text:
                with world.raise_on_all_ranks():
                    scorer = loaded.scorer(world, batch_size, dtype)
                results.update(
                    {f"text {path}": jsonl_tasks.text(path, scorer) for path in text or []}
                )
                results.update(report.run_tasks(names, scorer, limit))
            if weights == "ema":  # kept beside those of the weights themselves
                results = {f"{what}, weights ema": each for what, each in results.items()}
            rows.append((loaded.name, results))
            if loaded.checkpoint and world.is_rank0:
                _keep(loaded.checkpoint, results)
    if world.is_rank0:
        _print_json(rows) if json else _print(rows)


def _task_names(tasks: str | None, world: "World") -> list[str]:
    from nanogpt_dist.evaluation import report

    with world.raise_on_all_ranks():
        return [] if tasks is None else report.task_names(tasks)


def _refuse_unread(
    dataset: str | None,
    split: str | None,
    tasks: str | None,
    text: list[Path] | None,
    limit: int | None,
) -> None:
    """Raises UsageError for a flag that nothing would read."""
    from nanogpt_dist.errors import UsageError

    if limit is not None and tasks is None:
        raise UsageError(
            "--limit is for --tasks: add them, or leave it out; a loss is always that of a whole "
            "split"
        )
    if split is not None and (tasks or text) and not dataset:
        raise UsageError(
            "--split is for the loss, which --tasks and --text replace: leave it out, or add "
            "--dataset DIR"
        )


def _load_model(
    target: str | None,
    init_from: str | None,
    block_size: int | None,
    best: bool,
    world: "World",
    weights: Literal["model", "ema"] = "model",
) -> "LoadedModel":
    """The model to evaluate, on all ranks the same.

    One rank chooses the checkpoint, as a run that is still training goes on meanwhile.
    """
    from nanogpt_dist.errors import NanogptError, UsageError
    from nanogpt_dist.evaluation import report
    from nanogpt_dist.storage import run_checkpoints

    with world.raise_on_all_ranks():
        foreign = _foreign(target, init_from, block_size)
        if foreign is None and block_size:
            raise UsageError(
                "a run is judged at its own context; for a shorter one: --init-from RUN "
                "--block-size N"
            )
        if foreign is not None and best:
            raise UsageError("--best chooses among a run's checkpoints: leave it out")
        refuse_ema(weights, foreign)
    if foreign is not None:
        return world.local_rank0_first(lambda: report.load_pretrained(foreign, world.device))
    while True:
        chosen = ""
        with world.raise_on_all_ranks():
            if world.is_rank0:
                chosen = str(run_checkpoints.find_checkpoint(target, best, warn))
        found = Path(world.broadcast_text(chosen))
        try:
            with world.raise_on_all_ranks():
                return report.load_checkpoint(found, world.device, weights)
        except NanogptError:
            if not world.any(world.is_rank0 and not found.exists()):  # else its run has pruned it
                raise


def _dataset_of(loaded: "LoadedModel") -> str:
    from nanogpt_dist.storage import run_folder

    own = loaded.config.dataset
    return run_folder.dataset_of(loaded.checkpoint, own) if loaded.checkpoint else own


def _foreign(
    target: str | None,
    init_from: str | None,
    block_size: int | None,
) -> "TrainConfig | None":
    """The settings behind --init-from, or behind a preset or file that has it; None for a run."""
    from nanogpt_dist import load_config, presets
    from nanogpt_dist.errors import UsageError
    from nanogpt_dist.storage import run_folder

    shorter = {"block_size": block_size} if block_size else {}
    if init_from:
        return load_config.load("gpt2", {"init_from": init_from, **shorter})
    if (
        target is None
        or Path(target).is_dir()
        or run_folder.as_run(target)
        or run_folder.as_checkpoint(target)
    ):
        return None
    if target in presets.PRESETS or target.endswith((".toml", ".py")):
        config = load_config.load(target, shorter)
        if config.init_from is None:
            or_else = (
                f"or type --init-from {target}"
                if target in presets.OPENAI_SIZES
                else f"e.g. {config.out_dir}"
            )
            raise UsageError(f"{target} is a preset without weights; name a run, {or_else}")
        return config
    return None


def _keep(checkpoint: Path, results: Results) -> None:
    from nanogpt_dist.errors import NanogptError
    from nanogpt_dist.storage.eval_results import save_results

    try:
        save_results(checkpoint, results)
    except NanogptError as error:  # a folder of somebody else's
        warn(f"the figures are not kept: {error}")


def _print_json(rows: list[tuple[str, Results]]) -> None:
    from nanogpt_dist.storage.run_folder import to_json

    found = []
    for name, results in rows:
        loss = next((figures for figures in results.values() if "dataset" in figures), {})
        more = {what: figures for what, figures in results.items() if "dataset" not in figures}
        found.append({**loss, "checkpoint": name, **({"results": more} if more else {})})
    echo(to_json(found[0]) if len(found) == 1 else to_json({"checkpoints": found}))


def _print(rows: list[tuple[str, Results]]) -> None:
    if len(rows) > 1:
        _print_table(rows)
        return
    [(name, results)] = rows
    for what, figures in results.items():
        if "dataset" not in figures:
            values = " · ".join(f"{key} {_number(value)}" for key, value in figures.items())
            echo(f"{what}: {values}")
            continue
        loss = figures.get("val_loss", figures.get("train_loss"))
        echo(f"loss        {loss:.4f} ± {figures['standard_error']:.4f} nats/token")
        echo(f"perplexity  {figures['perplexity']:.2f}")
        echo(f"bits/byte   {figures['bits_per_byte']:.4f}")
        echo(f"tokens      {figures['tokens']:,}")
        if published := _published(name, figures["split"]):
            echo(f"published   {published:.2f} on OpenWebText, with the exact form of GELU")


def _published(name: str, split: str) -> float | None:
    from nanogpt_dist.interop.init_from import PUBLISHED

    return PUBLISHED[name][0 if split == "train" else 1] if name in PUBLISHED else None


# of a table
SHOWN = ("val_loss", "train_loss", "loss", "perplexity", "bits_per_byte", "acc", "acc_norm")


def _print_table(rows: list[tuple[str, Results]]) -> None:
    """Print one table.

    On a terminal that is too narrow: one for each thing that was measured, or a list.
    """
    columns = list(
        dict.fromkeys(
            (w, key)
            for _, results in rows
            for w, figures in results.items()
            for key in figures
            if key in SHOWN
        )
    )
    table = _table(rows, columns)
    if fits(table):
        echo_table(table)
        return
    for what in dict.fromkeys(what for what, _ in columns):
        own = [column for column in columns if column[0] == what]
        table = _table([(name[-NAMED:], results) for name, results in rows], own, titled=False)
        echo(what)
        if fits(table):
            echo_table(_table(rows, own, titled=False))
            continue
        for name, results in rows:
            echo(f"  {name}")
            for _, key in own:
                echo(f"    {key:<14} {_number(results.get(what, {}).get(key))}")


def _table(
    rows: list[tuple[str, Results]],
    columns: list[tuple[str, str]],
    titled: bool = True,
) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("checkpoint")
    before = None
    for what, key in columns:
        header = f"{what if what != before else ''}\n{key}" if titled else key
        table.add_column(header, justify="right", min_width=max(len(key), 9))
        before = what
    for name, results in rows:
        table.add_row(name, *(_number(results.get(what, {}).get(key)) for what, key in columns))
    return table


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else f"{value:,}"
