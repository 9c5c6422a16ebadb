"""`nanogpt launch --slurm` and `--kubernetes`: a job file instead of ranks on this machine."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.terminal import echo
from launch import job_options
from launch.job_options import Job, JobOptions
from nanogpt_dist.errors import CannotCreateError, StorageError, UsageError
from nanogpt_dist.storage import write_user_file

Slurm = Annotated[
    bool,
    typer.Option(
        "--slurm", help="Submit a job to Slurm that saves when its time is up, and goes on."
    ),
]
Kubernetes = Annotated[
    bool,
    typer.Option("--kubernetes", help="Print a Kubeflow manifest for kubectl; submits nothing."),
]


def check(
    given: dict[str, Any],
    to_slurm: bool,
    to_kubernetes: bool,
    node_rank: int | None,
    rdzv_endpoint: str | None,
) -> None:
    """Raises UsageError for options that contradict each other, or that nothing would read.

    given: those of JobOptions that were given.
    """
    if to_slurm and to_kubernetes:
        raise UsageError("--slurm or --kubernetes: give one of them")
    if (to_slurm or to_kubernetes) and (node_rank is not None or rdzv_endpoint):
        raise UsageError(
            "a job finds its nodes by itself: leave out --node-rank and --rdzv-endpoint"
        )
    groups = {
        job_options.SLURM: ("--slurm", to_slurm),
        job_options.KUBERNETES: ("--kubernetes", to_kubernetes),
    }
    for name in given:
        wanted, there = groups.get(
            _group(name), ("--slurm or --kubernetes", to_slurm or to_kubernetes)
        )
        if not there:
            raise UsageError(
                f"--{name.replace('_', '-')} is for job files: add {wanted}, or leave it out"
            )


def hand_over(job: Job, to_slurm: bool, dry_run: bool) -> None:
    """Submit a job to Slurm, or write its manifest; with dry_run only print it."""
    if to_slurm:
        _submit(job, dry_run)
    else:
        _manifest(job, dry_run)


def _submit(job: Job, dry_run: bool) -> None:
    from launch import slurm

    text = slurm.script(job, os.environ)
    if dry_run:
        echo(text, nl=False)
        return
    path = Path(slurm.file_name(job))
    slurm.write(path, text)
    number = slurm.submit(path)
    output = f"{job.name}-{number}{'_*' if job.tasks else ''}.out"
    echo(f"job {number} of {path}; see: tail -F {output}; end it: scancel {number}")


def _manifest(job: Job, dry_run: bool) -> None:
    from launch import kubernetes  # whose YAML takes its time to load

    text = kubernetes.to_yaml(kubernetes.manifests(job))
    output = job.options.output
    if not job.options.pvc:
        echo("nanogpt: without --pvc CLAIM:/mount the checkpoints end with their pod", err=True)
    if output is None or dry_run:
        echo(text, nl=False)
        return
    try:
        write_user_file(Path(output), text.encode())
    except StorageError as error:
        raise CannotCreateError(f"{error}, or give another --output") from error
    echo(f"Next: {shlex.join(['kubectl', 'create', '-f', output])}")


def _group(name: str) -> str:
    extra = JobOptions.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["group"])
