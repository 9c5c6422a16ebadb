"""All that is known of a training before it is launched: what `nanogpt plan` prints."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.devices import dtype_name, pick_dtype
from nanogpt_dist.distributed.layout import Site
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.estimate import run_speed
from nanogpt_dist.estimate.accelerators import ROWS, Accelerator, name_of
from nanogpt_dist.estimate.communication import Links
from nanogpt_dist.estimate.compute_optimal import (
    WIDTH,
    Optimum,
    TooFewFlopsError,
    best_settings,
    optimal_parameters,
    optimal_tokens,
    smallest,
)
from nanogpt_dist.estimate.cost import Cost, cost
from nanogpt_dist.estimate.flops import (
    BACKWARD,
    forward_flops,
    model_flops_per_token,
    training_flops,
)
from nanogpt_dist.estimate.memory_plan import Alternative, alternatives, best, site_of
from nanogpt_dist.estimate.mfu import Bench, Mfu, given_mfu, published_mfu
from nanogpt_dist.estimate.time import Duration, Speed, duration, slowed
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.model.fp8 import check_fp8_settings
from nanogpt_dist.training.disk_room import most_kept
from nanogpt_dist.training.optim import training_bytes

NARROW = 1.001  # FLOPs of a budget of hours are found up to so much
TF32_SHARE = 0.5  # of the peak in bfloat16


@dataclass(frozen=True)
class Machines:
    """On what: devices, how many, on how many nodes; network: bytes/s of a node; disk: bytes/s.

    pue: what the building takes for each watt. price_per_hour: of one device; None: not known.
    peak_given: the device's peak is that of the type that is trained in, whatever it is.
    """

    device: Accelerator
    gpus: int
    nodes: int
    network: float
    disk: float
    pue: float = 1.0
    price_per_hour: float | None = None
    peak_given: bool = False

    @property
    def ranks_per_node(self) -> int:
        """Ranks of each node."""
        if self.gpus % self.nodes:
            raise ConfigError(
                f"--gpus {self.gpus} cannot be shared by --nodes {self.nodes}: give a multiple"
            )
        return self.gpus // self.nodes

    @property
    def links(self) -> Links:
        """Of a rank within its node, and of a node."""
        return Links(self.device.link_gb_per_second * 1e9, self.network, self.ranks_per_node)


@dataclass(frozen=True)
class Data:
    """Tokens of the train and the val split, where they are known, from where, and how many ids."""

    train_tokens: int | None = None
    val_tokens: int | None = None
    source: str | None = None
    n_vocab: int | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """A training before it is launched. best.advice: what to do where nothing fits."""

    config: TrainConfig
    machines: Machines
    dtype: str
    best: Alternative
    alternatives: tuple[Alternative, ...]
    mfu: Mfu
    duration: Duration
    cost: Cost
    data: Data

    @property
    def parameters(self) -> int:
        """Of the model, as `nanogpt show params` counts them."""
        return sum(count_by_arithmetic(self.config).values())

    @property
    def mfu_here(self) -> float:
        """The MFU in the best layout, which may recompute more than the one that it is of."""
        return self.mfu.share * slowed(self.config, self.best.layout, self.mfu)

    @property
    def host_bytes(self) -> int | None:
        """Of each node's own memory, where cpu_offload keeps weights, gradients and moments."""
        if not self.config.cpu_offload or self.machines.device.kind != "cuda":
            return None
        states = int(training_bytes(self.config) * self.parameters // self.best.layout.shard)
        return states * self.machines.ranks_per_node

    @property
    def tokens(self) -> int:
        """That all steps read."""
        return self.config.ramp.tokens_before(self.config.max_iters)

    @property
    def epochs(self) -> float | None:
        """How often the steps read the train split; None: its size is not known."""
        return self.tokens / self.data.train_tokens if self.data.train_tokens else None


def make_plan(
    config: TrainConfig,
    machines: Machines,
    data: Data,
    mfu: float | None = None,
    bench: tuple[Bench, Mfu] | None = None,
) -> TrainingPlan:
    """The TrainingPlan of `config`, whose vocab_size is set. Raises ConfigError.

    mfu: that somebody gave; bench: that somebody measured; else a published one.
    """
    device = machines.device
    site, chosen, speed, time = _planned(config, machines, data, mfu, bench)
    money = (machines.pue, machines.price_per_hour)
    return TrainingPlan(
        config=config,
        machines=machines,
        dtype=dtype_name(site.dtype, config.dtype),
        best=chosen,
        alternatives=tuple(alternatives(site, machines.ranks_per_node)),
        mfu=speed.mfu,
        duration=time,
        cost=cost(device, machines.gpus, time.total_seconds, *money),
        data=data,
    )


def _planned(
    config: TrainConfig,
    machines: Machines,
    data: Data,
    mfu: float | None,
    bench: tuple[Bench, Mfu] | None,
) -> tuple[Site, Alternative, Speed, Duration]:
    """The part of a plan that its time needs. As make_plan()."""
    device, per_node = machines.device, machines.ranks_per_node
    dtype = dtype_on(device, config.dtype)
    _check_fp8(config, device)
    site = site_of(config, device.memory_bytes, machines.gpus, per_node, device.kind, dtype)
    chosen = best(site, per_node)
    speed = speed_of(config, machines, mfu, bench)
    return site, chosen, speed, duration(config, chosen.layout, speed, data.val_tokens)


def settings_for(
    base: TrainConfig,
    machines: Machines,
    data: Data,
    flops: float | None,
    hours: float | None,
    mfu: float | None = None,
    bench: tuple[Bench, Mfu] | None = None,
) -> tuple[TrainConfig, dict[str, Any]]:
    """The best size for a budget of FLOPs, or of hours on `machines`, with its settings to type.

    Evaluations and saves are within the hours. Raises ConfigError where it is too small.
    """
    if flops is not None:
        found = best_settings(base, flops, machines.gpus)
        return found.config, found.settings
    assert hours is not None
    # more than any MFU lets be had, also one that is measured above 1
    most = 2 * 3600 * hours * speed_of(base, machines, mfu, bench).peak_flops

    def within(flops: float) -> Optimum | None:
        """The best for so many FLOPs, where it ends in time."""
        found = best_settings(base, flops, machines.gpus)
        time = _planned(found.config, machines, data, mfu, bench)[-1]
        return found if time.total_seconds <= 3600 * hours else None

    # from above: a published MFU leaps with the size, so that a larger model may take less time
    try:
        while (chosen := within(most / 2)) is None:
            most /= 2
    except TooFewFlopsError:
        speed = speed_of(smallest(base), machines, mfu, bench)
        raise ConfigError(_too_few_hours(hours, machines, speed)) from None
    least = most / 2
    while most / least > NARROW:
        middle = math.sqrt(most * least)
        if better := within(middle):
            chosen, least = better, middle
        else:
            most = middle
    return chosen.config, chosen.settings


def _too_few_hours(hours: float, machines: Machines, speed: Speed) -> str:
    on_gpu = machines.device.kind == "cuda"
    another = "" if on_gpu else "add --device h100-80gb (--devices lists them), or "
    return (
        f"--hours {hours:g} on {machines.gpus} × {machines.device.name} at "
        f"{speed.flops / 1e12:.3g} TFLOP/s, an MFU of {speed.mfu.share:.1%}, are too few for a "
        f"model {WIDTH} wide; {another}give more to --hours"
    )


def speed_of(
    config: TrainConfig,
    machines: Machines,
    mfu: float | None = None,
    bench: tuple[Bench, Mfu] | None = None,
) -> Speed:
    """What `config` goes by on `machines`. As make_plan()."""
    peak = peak_of(machines, config.dtype, needed=bench is None)
    device = replace(machines.device, peak_tflops=peak)
    if mfu is not None:
        found = given_mfu(mfu)
    elif bench is not None:
        _check_bench(bench[0], device)
        found = bench[1]
    else:
        found = published_mfu(device, sum(count_by_arithmetic(config).values()))
    measured = bench[0] if bench else None
    return Speed(device, machines.gpus, machines.links, machines.disk, found, measured)


def measured_by(run: Path, config: TrainConfig, machines: Machines) -> tuple[Bench, Mfu] | None:
    """What a run has logged of its speed in config's dtype on such a device; None: nothing."""
    peak = peak_of(machines, config.dtype, needed=False)
    return run_speed.measured_by(run, machines.device, config.dtype, peak)


def _check_bench(bench: Bench, device: Accelerator) -> None:
    """Raises ConfigError where it was measured on another device than is planned for."""
    there = name_of(bench.device_name or "") or bench.device
    same = bench.device == device.kind and there in (bench.device, device.name)
    # of a device that somebody describes the name is no catalogue's
    if not same and (bench.device != device.kind or device.name in ROWS):
        raise ConfigError(
            f"--bench was measured on {there}, the plan is for {device.name}: type --device "
            f"{there}, or measure there"
        )


def dtype_on(device: Accelerator, name: str) -> torch.dtype:
    """The type of the products that `name` stands for on a device that is elsewhere."""
    if device.kind != "cuda":
        return pick_dtype(name, torch.device(device.kind))
    if name in ("bfloat16", "tf32") and not device.has_bfloat16:
        raise ConfigError(f"{device.name} has no {name}: type --dtype float16, or leave it out")
    if name == "auto":
        return torch.bfloat16 if device.has_bfloat16 else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def _check_fp8(config: TrainConfig, device: Accelerator) -> None:
    """Raises ConfigError where --fp8 is asked for, and `device` or the settings have none."""
    if not config.fp8:
        return
    if device.kind != "cuda" or not device.has_fp8:
        raise ConfigError(
            f"--fp8 needs an NVIDIA GPU of compute capability 8.9, this is {device.name}: leave "
            "--fp8 out"
        )
    check_fp8_settings(config)


def peak_of(machines: Machines, dtype: str, needed: bool) -> float:
    """The peak of one device in products of that type, TFLOP/s; of TF32 half of bfloat16's.

    Raises ConfigError where it is `needed` and not in the catalogue: that of exact float32.
    """
    device = machines.device
    if device.kind != "cuda" or machines.peak_given or dtype not in ("tf32", "float32"):
        return device.peak_tflops
    if dtype == "float32" and needed:
        raise ConfigError(
            f"the peak of {device.name} in exact float32 is not known here: add --peak TFLOPS, or "
            f"--bench FILE, or type --dtype {'tf32' if device.has_bfloat16 else 'float16'}"
        )
    return device.peak_tflops * TF32_SHARE


def as_json(plan: TrainingPlan, name: str, command: str | None) -> dict[str, Any]:
    """The plan as one JSON object; command: the line to type."""
    config, time, device = plan.config, plan.duration, plan.machines.device
    model, hardware = training_flops(config, plan.best.layout.activation_checkpointing)
    return {
        "preset": name,
        "parameters": plan.parameters,
        "device": asdict(device),
        "gpus": plan.machines.gpus,
        "nodes": plan.machines.nodes,
        "dtype": plan.dtype,
        "fits": plan.best.fits,
        "best": _alternative(plan.best),
        "alternatives": [_alternative(each) for each in plan.alternatives],
        "host_bytes": plan.host_bytes,
        "steps": config.max_iters,
        "batch_tokens": time.step.tokens,
        "tokens": plan.tokens,
        "dataset_tokens": plan.data.train_tokens,
        "epochs": plan.epochs,
        "flops": {
            "attention": "full",
            "per_token": model_flops_per_token(config),
            "model": model,
            "hardware": hardware,
            "forward_by_component": forward_flops(config),
            "forward_causal": sum(forward_flops(config, attention="causal").values()),
            "backward_over_forward": BACKWARD,
        },
        "mfu": {**asdict(plan.mfu), "in_this_layout": plan.mfu_here},
        "step": {
            "seconds": time.step.seconds,
            "computing_seconds": time.step.computing_seconds,
            "exposed_seconds": time.step.exposed_seconds,
            "waits_seconds": time.step.waits_seconds,
            "tokens_per_second": time.step.tokens_per_second,
        },
        "communication": [asdict(each) for each in time.step.collectives],
        "time": {
            "total_seconds": time.total_seconds,
            "start_seconds": time.start_seconds,
            "steps_seconds": time.steps_seconds,
            "evaluations": time.evaluations,
            "evaluation_seconds": time.evaluation_seconds,
            "save_waiting_seconds": time.waiting_seconds,
        },
        "checkpoints": {
            "count": time.checkpoints,
            "bytes": time.checkpoint_bytes,
            "seconds": time.save_seconds,
            "kept_bytes": kept_bytes(plan),
        },
        "cost": asdict(plan.cost),
        "compute_optimal": compute_optimal(plan, model),
        "command": command,
    }


def compute_optimal(plan: TrainingPlan, flops: int) -> dict[str, float]:
    """Chinchilla's: tokens for this size; size and tokens for these FLOPs."""
    parameters = optimal_parameters(flops)
    return {
        "tokens_per_parameter": plan.tokens / plan.parameters,
        "tokens_for_this_size": optimal_tokens(plan.parameters),
        "parameters_for_these_flops": parameters,
        "tokens_for_these_flops": optimal_tokens(parameters),
    }


def kept_bytes(plan: TrainingPlan) -> int:
    """Bytes of the checkpoints on the disk at most: kept, the best, and one that is written."""
    return most_kept(plan.config, plan.duration.checkpoints) * plan.duration.checkpoint_bytes


def _alternative(each: Alternative) -> dict[str, Any]:
    return {
        "strategy": each.strategy,
        "replicate": each.layout.replicate,
        "shard": each.layout.shard,
        "activation_checkpointing": each.layout.activation_checkpointing,
        "batch_size": each.layout.batch_size,
        "micro_batches": each.micro_batches,
        "peak_bytes": each.peak,
        "room_bytes": each.room,
        "fits": each.fits,
        "parts": each.parts,
        "flags": each.flags,
        "advice": each.advice,
    }


def data_of(config: TrainConfig) -> Data:
    """What the data folder's manifest says, where there is one."""
    from nanogpt_dist.data.manifest import Manifest
    from nanogpt_dist.errors import NanogptError

    folder = Path(config.dataset)
    if not folder.is_dir():
        return Data()
    try:
        manifest, _ = Manifest.read(folder)
    except NanogptError:
        return Data()
    splits = manifest.splits
    val = splits["val"].tokens if "val" in splits else None
    return Data(splits["train"].tokens, val, str(folder), manifest.tokenizer.n_vocab)
