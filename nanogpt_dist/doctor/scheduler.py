"""What Slurm and Kubernetes say to this process."""

import os
from collections.abc import Iterator

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine, is_rank
from nanogpt_dist.doctor.variables import gpu_files


def check_scheduler(machine: Machine) -> Iterator[Check]:
    """The job's nodes, tasks, cores and GPUs beside what this process has."""
    yield from _check_slurm(machine)
    yield from _check_kubernetes(machine)


def _check_slurm(machine: Machine) -> Iterator[Check]:
    environment = machine.environment
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return
    nodes = machine.number("SLURM_NNODES") or machine.number("SLURM_JOB_NUM_NODES") or 1
    well = True
    tasks = _step_tasks(machine)
    if "TORCHELASTIC_RUN_ID" in environment and tasks > 1:
        well = False
        text = f"--ntasks-per-node {tasks}: torchrun starts {tasks} times on each node"
        todo = "export SLURM_NTASKS_PER_NODE=1  # #SBATCH --ntasks-per-node=1"
        yield Check("Slurm", "error", text, todo)
    asked = machine.number("SLURM_CPUS_PER_TASK")
    has = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if asked is not None and has is not None and has < asked:
        well = False
        text = f"the job has {asked} cores for a task, this step {has}: srun does not pass them on"
        yield Check("Slurm", "warning", text, f"export SRUN_CPUS_PER_TASK={asked}")
    if nodes > 1 and "SLURM_STEP_ID" not in environment and not is_rank(environment):
        text = f"job {job} has {nodes} nodes, and this runs on the first alone: start it by srun"
        yield Check("Slurm", "warning", text, "srun --ntasks-per-node=1 nanogpt doctor")
        well = False
    gpus = machine.number("SLURM_GPUS_ON_NODE")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    seen = len(visible.split(",")) if visible else gpu_files(machine)
    if gpus is not None and gpus > seen:
        well = False
        text = f"the job has {gpus} GPUs on this node, this process sees {seen}"
        yield Check("Slurm", "error", text, "srun --gpus-per-task=0 --overlap nvidia-smi")
    if well:
        yield Check("Slurm", "ok", f"job {job}, {nodes} {'node' if nodes == 1 else 'nodes'}")


def _step_tasks(machine: Machine) -> int:
    """Tasks of this job step on each node; 1 in the script itself, which runs once."""
    if "SLURM_STEP_ID" not in machine.environment:
        return 1
    tasks = machine.number("SLURM_STEP_NUM_TASKS") or 1
    return -(-tasks // (machine.number("SLURM_STEP_NUM_NODES") or 1))


def _check_kubernetes(machine: Machine) -> Iterator[Check]:
    if "KUBERNETES_SERVICE_HOST" not in machine.environment:
        return
    folder = machine.root / "var/run/secrets/kubernetes.io/serviceaccount"
    mounted = "; a service account's token is mounted" if folder.is_dir() else ""
    yield Check("Kubernetes", "ok", f"a pod{mounted}")
