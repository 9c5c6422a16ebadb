"""What a job file needs to know: the options of --slurm and --kubernetes, declared once."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from launch.torchrun import COUNT
from nanogpt_dist.config import setting
from nanogpt_dist.errors import UsageError

JOBS, SLURM, KUBERNETES = "Job files, for --slurm and --kubernetes", "Slurm", "Kubernetes"
# Kubernetes makes NAME-node-0-0-xxxxx of it, which must stay within a DNS label's 63 characters
MAX_NAME = 40


class JobOptions(BaseModel):
    """The flags that only a job file needs, named as Slurm and kubectl name them."""

    job_name: str | None = setting(
        None, JOBS, "Name of the job; unset: nanogpt- and what is trained."
    )
    gpus_per_node: int | None = setting(
        None,
        JOBS,
        "GPUs of each node; unset: one per rank, or none for --device cpu and for prepare.",
        ge=0,
    )
    cpus_per_task: int | None = setting(
        None, JOBS, "CPU cores of each node (one task runs on each); unset: one per rank.", ge=1
    )
    mem: str | None = setting(
        None, JOBS, "Memory of each node, e.g. 64G (GiB); unset: the cluster's default."
    )

    partition: str | None = setting(None, SLURM, "Partition to run in.")
    time: str | None = setting(
        None, SLURM, "Time limit of one run, e.g. 12:00:00; at its end the job requeues itself."
    )
    account: str | None = setting(None, SLURM, "Account to charge.")
    qos: str | None = setting(None, SLURM, "Quality of service.")
    sbatch: list[str] | None = setting(
        None, SLURM, "Any other option of sbatch, e.g. --sbatch=--constraint=a100."
    )

    kind: Literal["trainjob", "pytorchjob"] = setting(
        "trainjob", KUBERNETES, "trainjob: Kubeflow Trainer 2; pytorchjob: Training Operator 1."
    )
    image: str | None = setting(
        None, KUBERNETES, "Container image with nanogpt-dist installed in it."
    )
    namespace: str | None = setting(
        None, KUBERNETES, "Namespace; unset: the one that kubectl is set to."
    )
    pvc: list[str] | None = setting(
        None,
        KUBERNETES,
        "CLAIM:/mount, a persistent volume claim; data/ and out/ are looked for in the first one.",
    )
    backoff_limit: int = setting(
        10,
        KUBERNETES,
        "Times that the job is started again after a failure (a clean stop is none).",
        ge=0,
    )
    output: str | None = setting(
        None, KUBERNETES, "File to write the manifest to; unset: standard output."
    )


@dataclass(frozen=True)
class Job:
    """`nanogpt ARGUMENTS` in nnodes × ranks processes, handed over to a scheduler.

    tasks: the arguments of each task of an array, in place of `arguments`; none: it is no array.
    """

    nnodes: int
    ranks: int  # on each node
    arguments: list[str]
    options: JobOptions
    name: str
    gpus: int  # of each node
    cpus: int  # of each node
    max_restarts: int
    shutdown_timeout_s: int
    folder: Path  # where relative paths start
    tasks: tuple[list[str], ...] = ()

    @property
    def launch(self) -> list[str]:
        """What stands behind `nanogpt launch` on every node, but for what tells the nodes apart."""
        return [*self.how, *self.arguments]

    @property
    def how(self) -> list[str]:
        """The launcher's own options."""
        return [
            *("--nnodes", str(self.nnodes), "--nproc-per-node", str(self.ranks)),
            *(
                "--max-restarts",
                str(self.max_restarts),
                "--shutdown-timeout",
                str(self.shutdown_timeout_s),
            ),
        ]


def make(
    nnodes: int,
    nproc_per_node: str,
    arguments: list[str],
    given: dict[str, Any],
    max_restarts: int,
    shutdown_timeout_s: int,
    folder: Path,
) -> Job:
    """The job of these settings; `given` are those of JobOptions that were given.

    Raises: UsageError if something is missing or cannot stand in a job file.
    """
    options = JobOptions(**given)
    if not re.fullmatch(COUNT, nproc_per_node) or int(nproc_per_node) < 1:
        raise UsageError(
            "which nodes a job gets is not known yet: say how many ranks each has, "
            "--nproc-per-node 8"
        )
    if nnodes < 1:
        raise UsageError(f"{nnodes} nodes: give at least 1 to --nnodes")
    if "--fresh" in arguments:
        raise UsageError(
            "a job that is started again has to resume: leave out --fresh and give a new --out-dir"
        )
    ranks, name = int(nproc_per_node), options.job_name or default_name(arguments)
    if len(name) > MAX_NAME or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UsageError(
            f"--job-name {name!r}: give small letters, digits and hyphens, at most {MAX_NAME}, a "
            "letter first"
        )
    if options.mem is not None and not re.fullmatch("[1-9][0-9]*[KMGT]", options.mem):
        raise UsageError(f"--mem {options.mem!r} is not a size: write it like 64G")
    gpus = (
        default_gpus(ranks, arguments) if options.gpus_per_node is None else options.gpus_per_node
    )
    cpus = options.cpus_per_task or ranks
    return Job(
        nnodes,
        ranks,
        arguments,
        options,
        name,
        gpus,
        cpus,
        max_restarts,
        shutdown_timeout_s,
        folder,
    )


def default_name(arguments: list[str]) -> str:
    """A name for the job that runs `nanogpt ARGUMENTS`: nanogpt-gpt2-124m for `train gpt2-124m`."""
    named = len(arguments) > 1 and not arguments[1].startswith("-")
    what = Path(arguments[1]).stem if named else arguments[0]
    clean = re.sub("[^a-z0-9]+", "-", f"nanogpt-{what}".lower())
    return clean[:MAX_NAME].strip("-")


def default_gpus(ranks: int, arguments: list[str]) -> int:
    """GPUs of a node with so many ranks: as many, unless what runs needs none."""
    on_cpu = "--device=cpu" in arguments or ("--device", "cpu") in itertools.pairwise(arguments)
    return 0 if arguments[0] == "prepare" or on_cpu else ranks
