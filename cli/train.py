"""`nanogpt train`: from shards to checkpoints."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json, flush_or_drop, takes_settings, warn
from cli.terminal import echo
from launch import verdict
from nanogpt_dist import load_config, presets
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.errors import ConfigError, NanogptError, StoppedError, UsageError
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import run_folder

if TYPE_CHECKING:
    from nanogpt_dist.distributed.world import World


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
    json: Json = False,
) -> None:
    """Train, or go on from the newest good checkpoint of the run folder.

    Ctrl-C or SIGTERM saves and returns 75; the same command again resumes.

    In several ranks: `torchrun --nproc-per-node 8 nanogpt train …`, or `nanogpt launch train …`.

    Defaults below are those of no preset; `nanogpt show config PRESET` tells a preset's.
    """
    stop = StopRequest(
        "stopped before the first update; the same command starts or resumes the run"
    )
    in_ranks = "RANK" in os.environ
    if not in_ranks:
        stop.listen()
    try:
        _refuse_evaluation(preset)
        branch_from = _branch(preset, settings.get("out_dir"), fresh)
        config = load_config.load(preset, settings)
    except NanogptError as error:
        error.agreed = True  # every rank read the same command line
        raise
    assert config.out_dir is not None
    verdict.tell_run(Path(config.out_dir))
    config = _look_at_data(preset, config, "vocab_size" in settings)

    from nanogpt_dist.distributed.strategy import needs_group
    from nanogpt_dist.distributed.world import connect
    from nanogpt_dist.training.loop import train as run

    with connect(config.device, config.timeout_s, needs_group(config)) as world:
        if in_ranks:  # until here the signals end a rank that waits for others, deep in C++
            stop.listen()
        if check_resume:
            _check_resume(config, world, stop, json)
            return
        result = run(config, world, stop, fresh, branch_from)
    stopped = result.verdict == "stopped"
    if not stopped:  # also where the ranks of an elastic run were stopped before
        verdict.write(verdict.Verdict(0, "", world.rank, agreed=True))
    if world.is_rank0 and (json or not stopped):
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


def _branch(preset: str, out_dir: str | None, fresh: bool) -> Path | None:
    """The checkpoint with which a new run begins, where one was named. Raises UsageError where no
    other folder was.
    """
    checkpoint = run_folder.as_checkpoint(preset)
    if checkpoint is None:
        return None
    run = run_folder.run_of(checkpoint)
    if out_dir is None or Path(out_dir).resolve() == run.resolve():
        resume = (
            f"its run goes on with: {shlex.join(['nanogpt', 'train', str(run)])}"
            if run_folder.as_run(str(run))
            else "its run is not here"
        )
        raise UsageError(
            f"{checkpoint.name} is a checkpoint; {resume}; a branch of it needs a new --out-dir DIR"
        )
    if fresh:
        raise UsageError(f"{checkpoint.name} is a checkpoint to go on from: leave --fresh out")
    return checkpoint


def _check_resume(config: TrainConfig, world: "World", stop: StopRequest, as_json: bool) -> None:
    from dataclasses import asdict

    from nanogpt_dist.storage.run_folder import to_json
    from nanogpt_dist.training.check_resume import check_resume

    proof = check_resume(config, world, stop)
    if not world.is_rank0:
        return
    if as_json:
        echo(to_json({"ok": True, **asdict(proof)}))
    else:
        echo(
            f"resuming is exact here: {proof.updates} updates in one go and in two halves end with "
            f"the same {proof.bytes:,} bytes of weights and moments"
        )


def _look_at_data(preset: str, config: TrainConfig, vocab_size_typed: bool) -> TrainConfig:
    """`config` with the data's vocab_size where none was typed and a preset's does not hold, which
    is told in a line.

    The commonest mistakes are in the data: they show before torch takes its seconds to load.
    """
    from nanogpt_dist.data import DataFolder

    try:
        tokenizer = DataFolder.open(Path(config.dataset)).tokenizer
    except NanogptError:
        # maybe only this rank does not see it: all of them tell it together, later
        if "RANK" in os.environ:
            return config
        raise
    if vocab_size_typed:
        return config
    fitted = load_config.fit_vocabulary(preset, config, tokenizer)
    if config.vocab_size not in (None, fitted.vocab_size) and os.environ.get("RANK", "0") == "0":
        echo(
            f"note: {config.dataset} has {tokenizer.n_vocab:,} ids: vocab_size is "
            f"{fitted.vocab_size:,}, not the {config.vocab_size:,} of {preset}",
            err=True,
        )
    return fitted


def _report(result: Any, as_json: bool) -> None:
    """Print the end of a run, which is what counts: only a script that wants its JSON has failed
    without it.
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
