"""Proof, on the machine at hand, that a resumed run is the undisturbed one to the last bit.

A few steps in one go, and the same in two halves with a checkpoint between; then every weight and
moment is compared.
"""

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import NanogptError, StoppedError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.plan import Plan, make_plan

STEPS = 2  # in each half


@dataclass(frozen=True)
class Proof:
    """What was compared: `files` tensor files of `bytes` in all, and the second half's losses."""

    updates: int
    files: int
    bytes: int
    losses: list[float]


def check_resume(config: TrainConfig, world: World, stop: StopRequest) -> Proof:
    """Prove that stopping and resuming changes no bit; raise NanogptError naming a difference.

    All is as in `config`, layout and size of a micro-batch included, but for at most two
    micro-batches a rank in each step.

    Works in a folder beside config.out_dir, which it removes.
    """
    assert config.out_dir is not None
    plan = make_plan(config, world)
    folder = Path(config.out_dir).parent / world.broadcast_text(
        f".check-resume-{secrets.token_hex(4)}"
    )
    config = config.model_copy(update=_few_steps(plan, world.size))
    try:
        runs_of = [folder / name for name in ("whole", "resumed")]
        _train(config, runs_of[0], world, stop)
        with world.with_long_timeout.raise_on_all_ranks():
            if world.is_rank0:
                _copy_half(*map(run_folder.checkpoints_of, runs_of))
        _train(config, runs_of[1], world, stop)
        with world.raise_on_all_ranks():
            return _compare(*runs_of)
    finally:
        if world.is_rank0:
            shutil.rmtree(folder, ignore_errors=True)


def _few_steps(plan: Plan, ranks: int) -> dict[str, Any]:
    """The settings that make few and short steps of a run, with the kernels of its own."""
    layout, config = plan.layout, plan.config
    smaller = ranks * layout.batch_size
    context = config.ramp.pieces[0].length
    # a ramp goes up within the second half
    ramps = {
        "batch_ramp": config.batch_ramp and f"0:{smaller},{STEPS + 1}:{2 * smaller}",
        "context_ramp": config.context_ramp and f"0:{context},{STEPS + 1}:{config.block_size}",
    }
    return {
        **ramps,
        **{"max_iters": 2 * STEPS, "save_interval": STEPS, "warmup_iters": 1},
        **{"eval_interval": 2 * STEPS, "eval_iters": 1, "lr_decay_iters": None},
        **{"log_interval": 1, "tensorboard": False, "wandb_log": False},
        "keep_checkpoints": 2 * STEPS,  # all: a wsd run saves where its decay starts, too
        # what would follow from the size of the whole step
        "strategy": layout.strategy,
        "activation_checkpointing": layout.activation_checkpointing,
        "batch_size": layout.batch_size,
        "join_micro_batches": False,
        "auto_batch_size": False,
        "gradient_accumulation_steps": ranks * min(2, plan.batches.per_update),
    }


def _train(config: TrainConfig, run: Path, world: World, stop: StopRequest) -> None:
    if train(config.model_copy(update={"out_dir": str(run)}), world, stop).verdict == "stopped":
        raise StoppedError("stopped before anything was proven; the same command starts over")


def _copy_half(whole: Path, resumed: Path) -> None:
    storage.make_folder(resumed)
    shutil.copytree(whole / storage.step_name(STEPS), resumed / storage.step_name(STEPS))


def _compare(whole: Path, resumed: Path) -> Proof:
    ends = [
        run_folder.checkpoints_of(run) / storage.step_name(2 * STEPS) for run in (whole, resumed)
    ]
    files, others = (
        {
            entry["name"]: entry
            for entry in storage.read_manifest(end)["files"]
            if entry["name"].endswith(".safetensors")
        }
        for end in ends
    )
    if different := sorted(
        name for name in files.keys() | others.keys() if files.get(name) != others.get(name)
    ):
        raise NanogptError(
            f"a resumed run differs from an undisturbed one in {', '.join(different)}; on a GPU "
            "try --deterministic, else please report it"
        )
    losses, again = _losses(whole), _losses(resumed)
    if losses != again:
        raise NanogptError(
            f"a resumed run's losses differ: {losses} and {again}; try --deterministic, else "
            "please report it"
        )
    return Proof(2 * STEPS, len(files), sum(entry["bytes"] for entry in files.values()), losses)


def _losses(run: Path) -> list[float]:
    """Of the second half."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record and record["step"] > STEPS]
