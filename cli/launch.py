"""`nanogpt launch prepare|train|eval|doctor …`: a command in several ranks, through torchrun."""

import contextlib
import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import launch_jobs, options
from cli.terminal import echo
from launch import job_options, multi_node, supervisor, torchrun
from nanogpt_dist.errors import NanogptError, UsageError

# the commands that share their work out; others would do it once in each rank
IN_RANKS = ("prepare", "train", "eval", "doctor")
# Options end at the command's name: all that follows it belongs to the command, even `--help` and
# `--nnodes`.
CONTEXT = {**options.CONTEXT, "allow_interspersed_args": False}


@options.takes_settings(job_options.JobOptions)
def launch(
    settings: dict[str, Any],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="prepare|train|eval|doctor …",
            help="The nanogpt command to run in every rank, with its options.",
        ),
    ],
    nproc_per_node: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Ranks on this node. auto: one per GPU; without a GPU one per core, at most 2.",
        ),
    ] = "auto",
    nnodes: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Nodes; type the same on each. MIN:MAX: as many as there are, they come and go.",
        ),
    ] = "1",
    node_rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="This node's number, from 0. Unset: nodes are numbered as they arrive.",
        ),
    ] = None,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where several nodes meet: the first node and a free port on it.",
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="Times in a row, without a new checkpoint, that a failed run starts again.",
        ),
    ] = 0,
    shutdown_timeout: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Seconds that the ranks have for saving when asked to stop.",
        ),
    ] = 60,
    slurm: launch_jobs.Slurm = False,
    kubernetes: launch_jobs.Kubernetes = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, or the job file, and run nothing.")
    ] = False,
) -> None:
    """Run prepare, train, eval or doctor in several ranks, on this node or on many.

    Ctrl-C, SIGTERM or SIGUSR1 lets every rank save, and returns 75: the same command again resumes.

    On two machines that see the same disk, type on the first, whose address is 10.0.0.1,
    `nanogpt launch --nnodes 2 --node-rank 0 --rdzv-endpoint 10.0.0.1:29500 train gpt2-124m`, and
    the same with --node-rank 1 on the second. They check each other's clock, versions and command
    first.

    With --slurm or --kubernetes, on a machine that can reach the scheduler, this becomes a job on
    --nnodes nodes.
    """
    _check_command(arguments[0])
    launch_jobs.check(settings, slurm, kubernetes, node_rank, rdzv_endpoint)
    if slurm or kubernetes:
        if "gpus_per_node" not in settings and _device_in_file(arguments) == "cpu":
            settings["gpus_per_node"] = 0
        job = job_options.make(
            _number(nnodes),
            nproc_per_node,
            arguments,
            settings,
            max_restarts,
            shutdown_timeout,
            Path.cwd(),
        )
        launch_jobs.hand_over(job, slurm, dry_run)
        return
    ranks, nodes = (
        torchrun.ranks(nproc_per_node),
        torchrun.nodes_of(nnodes, node_rank, rdzv_endpoint),
    )
    line = torchrun.command(ranks, nodes, max_restarts, arguments)
    added = torchrun.environment(ranks, shutdown_timeout, os.environ)
    added |= torchrun.environment_of_nodes(nodes, os.environ)
    if dry_run:
        echo(torchrun.pasteable(line, added))
        return
    run = supervisor.Run(
        line, {**torchrun.inherited(os.environ), **added}, shutdown_timeout, max_restarts
    )
    if nodes.several:
        run = multi_node.with_others(run, nodes, arguments)
    raise typer.Exit(supervisor.run(run))


def _device_in_file(arguments: list[str]) -> str | None:
    """The device that a settings file or a run says, where `train` is given one and no --device."""
    if arguments[0] != "train":
        return None
    from cli.train import train
    from nanogpt_dist import load_config

    app = typer.Typer(context_settings=options.CONTEXT)
    app.command()(train)
    words = options.nanogpt_style(arguments[1:])
    # the job itself says what is wrong
    with contextlib.suppress(NanogptError, typer.TyperException):
        given = (
            typer.main.get_command(app).make_context("train", words, resilient_parsing=True).params
        )
        # no need to fetch it
        return given["device"] or load_config.load(given["preset"], {"init_from": "scratch"}).device
    return None


def _number(nnodes: str) -> int:
    if not re.fullmatch(torchrun.COUNT, nnodes):
        raise UsageError(
            f"--nnodes {nnodes[:40]}: a job has as many nodes from start to end; give one number"
        )
    return int(nnodes)


def _check_command(name: str) -> None:
    if name in IN_RANKS:
        return
    nearest = difflib.get_close_matches(name, IN_RANKS, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}?" if nearest else f"give one of {', '.join(IN_RANKS)}"
    raise UsageError(f"cannot launch {name!r}: {advice}")
