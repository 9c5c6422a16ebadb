"""`nanogpt train`: from shards to checkpoints."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completing
from cli.ending import exit_with
from cli.options import Json, flush_or_drop, note, rank, takes_settings, warn
from cli.terminal import echo
from launch import verdict
from nanogpt_dist import load_config, presets, start_again
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.errors import ConfigError, StoppedError
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.signals import StopRequest


def preset_table() -> str:
    """A line for each preset: its name, its parameters, what it is."""
    lines = [f"{'Presets:':<20}{'parameters':>10}"]
    for name, about in presets.ABOUT.items():
        settings = presets.PRESETS[name]
        weights = presets.OPENAI_SIZES.get(settings.get("init_from", ""), {})
        parameters = sum(count_by_arithmetic(resolve({**settings, **weights})).values())
        lines.append(f"{name:<20} {parameters / 1e6:>7,.1f} M  {about}")
    return "\n".join(lines)


@takes_settings(TrainConfig)
def train(
    settings: dict[str, Any],
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE.toml|FILE.py|RUN",
            autocompletion=completing.targets,
            help="A preset (they are listed at the end), a file of settings, one of nanoGPT's "
            "configs, or a run to go on with.",
        ),
    ] = presets.DEFAULT_PRESET,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start at step 0, and refuse if the run folder has checkpoints."
        ),
    ] = False,
    check_resume: Annotated[
        bool,
        typer.Option(
            "--check-resume",
            help="Prove that stopping and resuming changes no bit here; writes nothing, takes a "
            "minute.",
        ),
    ] = False,
    recheck_step: Annotated[
        int | None,
        typer.Option(
            "--recheck-step",
            metavar="STEP",
            min=1,
            max=2**40,
            help="Make a logged step of the run again, from the checkpoint before it, and compare "
            "loss and gradient; writes nothing.",
        ),
    ] = None,
    decay_from: Annotated[
        int | None,
        typer.Option(
            "--decay-from",
            metavar="STEP",
            min=1,
            max=2**40,
            help="Branch off a run's checkpoint at STEP and decay the learning rate from there on, "
            "in RUN-decay-STEP or --out-dir.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train, or go on from the newest good checkpoint of the run folder.

    Ctrl-C or SIGTERM saves after the step and returns 75; the same command again resumes. A second
    Ctrl-C within 5 s leaves at once.

    In several ranks: `torchrun --nproc-per-node 8 nanogpt train …`, or `nanogpt launch train …`.

    Defaults below are those of no preset; `nanogpt show config PRESET` tells a preset's.
    """
    from nanogpt_dist import api

    stop = StopRequest("stopped before the first step; the same command starts or resumes the run")
    if "RANK" not in os.environ:  # else api.train() listens, once the ranks have met
        stop.listen()
    _refuse_evaluation(preset)
    if decay_from is not None:
        preset, settings = api.decay_branch(preset, decay_from, settings, fresh)
    branch_from = api.branch_point(preset, settings.get("out_dir"), fresh)
    config = load_config.load(preset, settings)
    assert config.out_dir is not None
    verdict.tell_run(Path(config.out_dir))
    tell = note if rank() == 0 else lambda _: None
    config = api.with_rows_of_data(preset, config, "vocab_size" in settings, tell)
    if check_resume:
        _check_resume(config, stop, json)
        return
    if recheck_step is not None:
        _recheck_step(config, recheck_step, stop, json)
        return
    from nanogpt_dist.api.training import expected_speed
    from nanogpt_dist.training.loop import train as run

    fresh = fresh and start_again.times() == 0  # what is there by then is this run's own
    with api.connected(config, stop, exit_with) as world:
        result = run(config, world, stop, fresh, branch_from, expected_speed)
    stopped = result.verdict == "stopped"
    if not stopped:  # also where the ranks of an elastic run were stopped before
        verdict.write(verdict.Verdict(0, "", rank(), agreed=True))
    if rank() == 0 and (json or not stopped):
        _report(result, json)
    if stopped:
        raise StoppedError(
            f"stopped and saved at step {result.step}; the same command again goes on from there"
        )


def _refuse_evaluation(preset: str) -> None:
    """A config of nanoGPT's may say eval_only, and then is to be evaluated."""
    if preset.endswith(".py"):
        from nanogpt_dist.interop import nanogpt_config

        if nanogpt_config.only_evaluates(Path(preset)):
            raise ConfigError(f"{preset} says eval_only: type nanogpt eval {preset}")


def _check_resume(config: TrainConfig, stop: StopRequest, as_json: bool) -> None:
    from dataclasses import asdict

    from nanogpt_dist import api
    from nanogpt_dist.storage.run_folder import to_json
    from nanogpt_dist.training.check_resume import check_resume

    with api.connected(config, stop, exit_with) as world:
        proof = check_resume(config, world, stop)
    if not world.is_rank0:
        return
    if as_json:
        echo(to_json({"ok": True, **asdict(proof)}))
    else:
        echo(
            f"resuming is exact here: {proof.updates} steps in one go and in two halves end with "
            f"the same {proof.bytes:,} bytes of weights and moments"
        )


def _recheck_step(config: TrainConfig, step: int, stop: StopRequest, as_json: bool) -> None:
    from dataclasses import asdict

    from nanogpt_dist import api
    from nanogpt_dist.storage.run_folder import to_json
    from nanogpt_dist.training.recheck_step import recheck_step

    with api.connected(config, stop, exit_with) as world:
        found = recheck_step(config, step, world)
    if not world.is_rank0:
        return
    if as_json:
        echo(to_json({**asdict(found), "exact": found.exact, "difference": found.difference}))
        return
    told = (
        f"; they differ by {found.difference:.1e} of it, as other ranks, threads or kernels round"
    )
    echo(
        f"step {step:,} comes to loss {found.loss:.4f}, norm {found.grad_norm:.2f}, as logged"
        + (", to the last bit" if found.exact else told)
    )


def _report(result: Any, as_json: bool) -> None:
    """Print the end of a run.

    The run is what counts: only a script that wants its JSON has failed without it.
    """
    try:
        _print(result, as_json)
    except BrokenPipeError:  # nobody listens any more
        flush_or_drop()
    except OSError as error:
        flush_or_drop()
        if as_json:
            raise
        warn(
            f"standard output cannot be written ({error.strerror}); the run is {result.verdict} "
            "and saved"
        )


def _print(result: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from nanogpt_dist.storage.run_folder import to_json

    if as_json:
        echo(to_json(asdict(result)))
        return
    val_loss = "–" if result.val_loss is None else f"{result.val_loss:.4f}"
    best = "–" if result.best_val_loss is None else f"{result.best_val_loss:.4f}"
    echo(f"{result.checkpoint}: step {result.step:,}, val loss {val_loss} nats/token (best {best})")
    run = Path(result.checkpoint).parent.parent
    echo(f"Next: {shlex.join(['nanogpt', 'sample', str(run)])}")
