"""`nanogpt plan`: what a training takes of memory, time and money, before it is launched."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json, Settings, note, takes_settings
from cli.terminal import echo
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, UsageError
from nanogpt_dist.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from nanogpt_dist.estimate.training_plan import Data, Machines

A_NODE = 8  # GPUs, where nobody says how many


@takes_settings(TrainConfig, panel="Settings to override", without=("device",))
def plan(
    settings: Settings,
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE|RUN",
            autocompletion=completing.targets,
            help="A preset, a file of settings, or a run.",
        ),
    ] = DEFAULT_PRESET,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**20,
            help="Ranks over all nodes.  [default: this machine's GPUs, or 1]",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes.  [default: one for 8 GPUs]", show_default=False),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of each rank, e.g. h100-80gb; auto, cpu, cuda: this machine's; see --devices.",
        ),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a device in place of its own, e.g. 80GB or 40GiB."),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(metavar="TFLOPS", min=0, help="In place of the device's own.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the peak that is reached, e.g. 0.4."),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `nanogpt bench train --json` printed on such a device; measures the share.",
        ),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            metavar="RATE",
            help="Of a node to the others, all adapters together; b is a bit, B a byte.",
        ),
    ] = "400gbit",
    disk: Annotated[
        str, typer.Option(metavar="RATE", help="At which a checkpoint is written.")
    ] = "1GB/s",
    dataset_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Of the train split, e.g. 9e9, where it is not prepared."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, metavar="MONEY", help="Of one GPU.")
    ] = None,
    pue: Annotated[
        float, typer.Option(min=1, help="Watts that the building takes for one of a machine.")
    ] = 1.0,
    budget: Annotated[
        str | None,
        typer.Option(metavar="FLOPS", help="Find the best size, and its tokens, e.g. for 1e20."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Find the best size for so many hours.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|FILE.png", help="Draw the memory (needs the extra `plot`)."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every micro-batch, not only the largest that fits.")
    ] = False,
    devices: Annotated[
        bool, typer.Option("--devices", help="List the devices that are known, and end.")
    ] = False,
    json: Json = False,
) -> None:
    """Will it fit, how long will it take, what will it cost: of a training on any machines.

    It needs none of them: no GPU, no data, no ranks. Memory is what training itself goes by when it
    chooses strategy, activation checkpointing and micro-batch. Time comes from --mfu or --bench,
    of a run from what it has logged, else from what others have published.

    With --budget or --hours it chooses size, tokens, batch and rate instead, by Hoffmann et al.
    2022 and Brown et al. 2020. The last line is the one to type.
    """
    from cli import plan_report

    if devices:
        plan_report.print_devices(json)
        return
    _refuse_several(mfu=mfu, bench=bench)
    _refuse_several(budget=budget, hours=hours)
    if mfu is not None and not mfu > 0:
        raise UsageError("--mfu: give more than 0, e.g. --mfu 0.4")
    if hours is not None and not math.isfinite(hours):
        raise UsageError(f"--hours {hours} are no hours: type e.g. --hours 24")
    from nanogpt_dist.estimate import quantities, training_plan
    from nanogpt_dist.estimate.mfu import read_bench
    from nanogpt_dist.storage import run_folder

    if budget is not None or hours is not None:
        _refuse_begun(preset)
    config = _load(preset, settings)
    where = _machines(
        device,
        _places(gpus, nodes, device),
        None if memory is None else quantities.memory_of(memory, "--memory"),
        peak or None,
        quantities.rate_of(network, "--network"),
        quantities.rate_of(disk, "--disk"),
        (pue, price_per_hour),
    )
    measured = None
    if bench is not None:
        found = read_bench(bench)
        measured = (found, found.as_mfu(bench))
    elif mfu is None and (run := run_folder.as_run(preset)):
        measured = training_plan.measured_by(run, config, where)
    data = _data(config, dataset_tokens)
    if budget is not None or hours is not None:
        flops = None if budget is None else quantities.flops_of(budget, "--budget")
        config, chosen = training_plan.settings_for(
            config, where, data, flops, hours, mfu, measured
        )
        settings = {**settings, **chosen}
    made = training_plan.make_plan(config, where, data, mfu, measured)
    is_done = _is_done(preset, config)
    line = None if is_done else plan_report.command(made, preset, settings)
    if plot is not None:
        plan_report.draw(made, preset, plot)
    if json:
        from nanogpt_dist.storage.run_folder import to_json

        echo(to_json(training_plan.as_json(made, preset, line)))
        return
    plan_report.report(made, preset, line, all_)
    if is_done:
        echo(f"{preset} has made all of its {config.max_iters:,} steps")
    if plot is not None:
        echo(f"{plot} is drawn")


def _refuse_several(**given: object) -> None:
    """Raises UsageError where more than one of these flags is given."""
    flags = [f"--{name}" for name, value in given.items() if value is not None]
    if len(flags) > 1:
        raise UsageError(f"{' and '.join(flags)} say the same: give one of them")


def _refuse_begun(preset: str) -> None:
    """Raises ConfigError for what has a size already."""
    from nanogpt_dist.storage import run_folder

    if run_folder.as_run(preset) or run_folder.as_checkpoint(preset):
        raise ConfigError(
            "--budget and --hours choose the size of a new model, and a run has one: give a preset "
            "or a file of settings"
        )


def _is_done(preset: str, config: TrainConfig) -> bool:
    """Whether it is a run that has made all of its steps."""
    from nanogpt_dist.ladder import sweep
    from nanogpt_dist.storage import run_folder

    run = run_folder.as_run(preset)
    if run is None or Path(config.out_dir or run).resolve() != run.resolve():
        return False
    return sweep.state(run, config.max_iters) == "done"


def _load(preset: str, settings: dict[str, Any]) -> TrainConfig:
    """The settings, their vocab_size known: typed, the preset's, or that of the data.

    Raises ConfigError without.
    """
    from nanogpt_dist.load_config import load, with_vocabulary

    config = load(preset, settings)
    if config.vocab_size is None:
        from nanogpt_dist import api
        from nanogpt_dist.errors import NanogptError

        try:
            config = api.with_rows_of_data(preset, config, False, lambda _: None)
        except NanogptError:
            raise ConfigError(
                f"{preset} leaves vocab_size to the data set, which is not here; add --vocab-size, "
                "e.g. --vocab-size 50304"
            ) from None
    return with_vocabulary(config)


def _places(gpus: int | None, nodes: int | None, device: str) -> tuple[int, int]:
    """How many ranks, and on how many nodes. Raises UsageError where that cannot be told."""
    if gpus is None:
        gpus = (nodes or 1) * (A_NODE if nodes else _gpus_here(device))
    if nodes is None:
        if gpus > A_NODE and device != "cpu" and gpus % A_NODE:
            raise UsageError(f"--gpus {gpus} are no whole nodes of {A_NODE}: add --nodes N")
        nodes = 1 if gpus <= A_NODE or device == "cpu" else gpus // A_NODE
    if gpus % nodes:
        raise UsageError(f"--gpus {gpus} cannot be shared by {nodes} nodes: give a multiple")
    return gpus, nodes


def _gpus_here(device: str) -> int:
    """GPUs of this machine, where it is planned for; else 1."""
    if device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _machines(
    name: str,
    places: tuple[int, int],
    memory: int | None,
    peak: float | None,
    network: float,
    disk: float,
    money: tuple[float, float | None],
) -> "Machines":
    from nanogpt_dist.estimate.accelerators import accelerator
    from nanogpt_dist.estimate.training_plan import Machines

    device = accelerator(name, memory, peak)
    if name == "auto" and device.kind == "cpu" and places[0] > 1:
        note("no GPU is here, so it is CPUs like this one's; type e.g. --device h100-80gb")
    return Machines(device, *places, network, disk, *money, peak_given=peak is not None)


def _data(config: TrainConfig, typed: str | None) -> "Data":
    """Tokens of the data set: typed, those of its folder, or those that the catalogue knows."""
    from nanogpt_dist.estimate import quantities, training_plan

    if typed is not None:
        count = int(quantities.count_of(typed, "--dataset-tokens"))
        return training_plan.Data(count, None, "--dataset-tokens")
    found = training_plan.data_of(config)
    if found.train_tokens is None:
        from prepare.corpora import CORPORA

        corpus = CORPORA.get(Path(config.dataset).name)
        if corpus is not None and corpus.tokens is not None:
            return training_plan.Data(*corpus.tokens, "the catalogue")
    elif config.vocab_size is not None and found.n_vocab and found.n_vocab > config.vocab_size:
        note(
            f"{config.dataset} has {found.n_vocab:,} ids, more than vocab_size "
            f"{config.vocab_size:,}: training takes more rows"
        )
    return found
