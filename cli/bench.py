"""`nanogpt bench train|sample|data|io`: how fast this machine is, and where the time goes."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.ending import exit_with
from cli.help import command, group
from cli.options import Device, Json, Preset, Settings, takes_settings, warn
from cli.terminal import echo
from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.load_config import load
from nanogpt_dist.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from nanogpt_dist.bench.data import DataSpeed
    from nanogpt_dist.bench.io import IoSpeed
    from nanogpt_dist.bench.sample import SampleSpeed
    from nanogpt_dist.bench.train import TrainSpeed

GB = 10**9

Updates = Annotated[int, typer.Option(min=3, help="Steps to measure.")]
Seconds = Annotated[
    float, typer.Option(min=0, help="Measure no longer than this, but 3 steps at least.")
]

bench_app = group(
    "nanogpt bench train gpt2-124m",
    "nanogpt bench sample gpt2-124m --num-samples 8",
)


@command(
    bench_app,
    "train",
    "nanogpt bench train gpt2-124m --optimizer muon",
    "torchrun --nproc-per-node 8 nanogpt bench train gpt2-124m --strategy fsdp --profile trace",
)
@takes_settings(
    TrainConfig,
    groups={
        *("Model", "Model options", "Data", "Optimizer", "Recipe", "Machine", "Distributed"),
    },
)
def train(
    settings: Settings,
    preset: Preset = DEFAULT_PRESET,
    updates: Updates = 20,
    seconds: Seconds = 30.0,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a trace of one step there, for TensorBoard or ui.perfetto.dev.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Steps as `nanogpt train` makes them: tokens/s, MFU, memory, and where the time goes.

    Data are random ids, unless --dataset is given. On a CPU a step is one micro-batch on each
    rank, unless --gradient-accumulation-steps is given. In several ranks:
    `torchrun --nproc-per-node 8 nanogpt bench train …`.
    """
    config = load(preset, settings)
    from nanogpt_dist.bench.train import Duration, bench_train
    from nanogpt_dist.data import DataFolder
    from nanogpt_dist.distributed.strategy import needs_group
    from nanogpt_dist.distributed.world import connect

    with connect(config.device, config.timeout_s, needs_group(config), exit_with) as world:
        if "gradient_accumulation_steps" not in settings and world.device.type == "cpu":
            few = {"gradient_accumulation_steps": world.size, "batch_ramp": None}
            config = config.model_copy(update=few)
        with world.raise_on_all_ranks():
            data = DataFolder.open(Path(config.dataset)) if "dataset" in settings else None
        speed = bench_train(config, world, data, Duration(updates, seconds), profile, warn)
    if world.is_rank0:
        _print(speed, _train_lines(speed), json)


@command(
    bench_app,
    "sample",
    "nanogpt bench sample gpt2-124m --num-samples 8",
    "nanogpt bench sample quickstart --dtype int8 --device cpu",
)
@takes_settings(ModelConfig, panel="Settings to override")
def sample(
    settings: Settings,
    preset: Preset = DEFAULT_PRESET,
    num_samples: Annotated[int, typer.Option(min=1, help="Rows that are drawn together.")] = 1,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the prompt of each row.")
    ] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to draw for each row.")] = 64,
    rounds: Annotated[
        int,
        typer.Option(min=1, help="How often all is drawn, after a first time that does not count."),
    ] = 5,
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(help="Format of the weights; auto: bfloat16 where the device is fast in it."),
    ] = "auto",
    cuda_graphs: Annotated[
        bool, typer.Option(help="On cuda: record a decode step, and replay it.")
    ] = True,
    json: Json = False,
) -> None:
    """Samples from random weights: tokens/s, what a prompt takes, what a token takes."""
    config = load(preset, settings)
    from nanogpt_dist.bench.sample import SampleWorkload, bench_sample
    from nanogpt_dist.devices import pick_device

    workload = SampleWorkload(num_samples, prompt_tokens, max_new_tokens, rounds)
    speed = bench_sample(config.architecture(), pick_device(device), dtype, workload, cuda_graphs)
    _print(speed, _sample_lines(speed), json)


@command(
    bench_app,
    "data",
    "nanogpt bench data --dataset data/openwebtext",
    "nanogpt bench data --megabytes 1024 --updates 500",
)
@takes_settings(TrainConfig, groups={"Data"})
def data(
    settings: Settings,
    preset: Preset = DEFAULT_PRESET,
    megabytes: Annotated[
        int, typer.Option(min=1, help="Size of the random data, where no --dataset is given.")
    ] = 256,
    updates: Updates = 100,
    seconds: Seconds = 10.0,
    json: Json = False,
) -> None:
    """Read the tokens of whole steps in one process: tokens/s, and the memory it takes.

    Data are random ids in a temporary folder (TMPDIR), unless --dataset is given. A block is
    checked when it is first touched.
    """
    config = load(preset, settings)
    from nanogpt_dist.bench.data import bench_data

    dataset = Path(config.dataset) if "dataset" in settings else None
    speed = bench_data(config, dataset, megabytes, updates, seconds)
    _print(speed, _data_lines(speed), json)


@command(
    bench_app,
    "io",
    "nanogpt bench io gpt2-124m",
    "nanogpt bench io gpt2-1558m --folder /scratch/out --rounds 5",
)
@takes_settings(
    TrainConfig, groups={"Model", "Model options", "Optimizer", "Machine", "Distributed"}
)
def io(
    settings: Settings,
    preset: Preset = DEFAULT_PRESET,
    folder: Annotated[Path, typer.Option(help="Where to write; all is removed again.")] = Path(
        "out"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Checkpoints to write.")] = 3,
    json: Json = False,
) -> None:
    """Checkpoints: how long a step waits for one, and how long one takes to write and read."""
    config = load(preset, settings)
    from nanogpt_dist.bench.io import bench_io
    from nanogpt_dist.distributed.strategy import needs_group
    from nanogpt_dist.distributed.world import connect

    with connect(config.device, config.timeout_s, needs_group(config), exit_with) as world:
        speed = bench_io(config, world, folder, rounds)
    if world.is_rank0:
        _print(speed, _io_lines(speed), json)


def _print(
    speed: "TrainSpeed | SampleSpeed | DataSpeed | IoSpeed",
    lines: list[str],
    as_json: bool,
) -> None:
    from nanogpt_dist.storage.run_folder import to_json

    echo(to_json(asdict(speed)) if as_json else "\n".join(lines))


def _train_lines(speed: "TrainSpeed") -> list[str]:
    from nanogpt_dist.bench.train import COMMUNICATION
    from nanogpt_dist.training.summary import counted

    each = "" if speed.ranks == 1 else " in each rank"
    lines = [
        f"{speed.parameters:,} parameters · {speed.ranks} × {speed.device} {speed.dtype}, "
        f"{speed.layout}, {counted(speed.threads, 'thread')} each",
        f"{speed.batch_tokens:,} tokens a step = {counted(speed.ranks, 'rank')} × "
        f"{counted(speed.micro_batches, 'micro-batch', 'es')} × "
        f"{counted(speed.batch_size, 'sequence')}",
        "",
        f"{speed.tokens_per_second:,.0f} tokens/s · mfu {speed.mfu:.1%} of {speed.ranks} × "
        f"{speed.peak_tflops:.3g} TFLOP/s · {speed.memory_bytes / GB:.2f} GB{each}",
        f"{speed.ms_per_update:,.1f} ms a step, median of {speed.updates} "
        f"({speed.ms_least:,.1f} to {speed.ms_greatest:,.1f})",
        "",
    ]
    # of the steps in which they were timed: others may have been slower or faster
    step_ms = sum(ms for name, ms in speed.phases.items() if name != COMMUNICATION)
    lines += [
        f"{name:<14}{ms:>10,.1f} ms {ms / step_ms:>7.1%}"
        + ("  beside forward and backward" if name == COMMUNICATION else "")
        for name, ms in speed.phases.items()
    ]
    return lines + ([f"\n{speed.trace}: open it at https://ui.perfetto.dev"] if speed.trace else [])


def _sample_lines(speed: "SampleSpeed") -> list[str]:
    from nanogpt_dist.training.summary import counted

    held = ", held in bfloat16" if speed.weights == "int8" and speed.device != "cpu" else ""
    return [
        f"{speed.parameters:,} parameters · {speed.device}, weights in {speed.weights}{held}, "
        f"{counted(speed.threads, 'thread')}",
        f"{speed.num_samples} × {speed.prompt_tokens} → {speed.max_new_tokens} tokens: "
        f"{speed.tokens_per_second:,.1f} new tokens/s · {speed.memory_bytes / GB:.2f} GB",
        f"{speed.prefill_ms:,.1f} ms for the prompts, then {speed.ms_per_update:,.2f} ms for a "
        f"token of each row ({speed.ms_least:,.2f} to {speed.ms_greatest:,.2f}); weights at "
        f"{speed.weights_gb_per_second:,.1f} GB/s",
    ]


def _data_lines(speed: "DataSpeed") -> list[str]:
    return [
        f"{speed.dataset}: {speed.dataset_tokens:,} tokens, opened in {speed.open_ms:,.1f} ms",
        f"{speed.tokens_per_second:,.0f} tokens/s · {speed.ms_per_update:,.2f} ms for the "
        f"{speed.batch_tokens:,} of a step, median of {speed.updates} ({speed.ms_least:,.2f} to "
        f"{speed.ms_greatest:,.2f})",
        f"{speed.far_ms:,.2f} ms for those of the millionth · memory "
        f"{speed.memory_growth_bytes / 1e6:+,.1f} MB",
    ]


def _io_lines(speed: "IoSpeed") -> list[str]:
    return [
        f"{speed.parameters:,} parameters, {speed.layout} · checkpoints of {speed.bytes / GB:.2f} "
        f"GB in {speed.folder}",
        f"a step waits {speed.ms_per_update:,.0f} ms for a save beside it, the first "
        f"{speed.first_copy_ms:,.0f} ms",
        f"save {speed.save_ms:,.0f} ms ({speed.save_gb_per_second:.2f} GB/s) · verify "
        f"{speed.verify_ms:,.0f} ms · load {speed.load_ms:,.0f} ms",
    ]
