"""Manifests for Kubeflow: a TrainJob with its runtime, or a PyTorchJob.

Every pod runs `nanogpt launch`.

A pod that is to go gets SIGTERM, saves with all the others and returns 75: the job starts again and
resumes. In a TrainJob (Kubeflow Trainer 2.2 and later, which makes a JobSet of it) that costs none
of its restarts, and what no restart mends, a wrong setting or missing data, ends it. A PyTorchJob
(Training Operator 1) restarts whatever fails.
"""

import re
from typing import Any

import yaml

from launch.job_options import Job
from nanogpt_dist.errors import Exit, UsageError

GPU = "nvidia.com/gpu"
MARGIN_S = 30  # between the end of the ranks' time for saving and the pod's SIGKILL
NO_RESTART_MENDS = sorted(
    (Exit.USAGE, Exit.BAD_DATA, Exit.MISSING_INPUT, Exit.CANNOT_CREATE, Exit.CONFIG)
)
LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NO_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # to some parser of YAML

Manifest = dict[str, Any]


def manifests(job: Job) -> list[Manifest]:
    """The objects to create, in this order.

    Raises: UsageError if something is missing or is not what Kubernetes takes.
    """
    _check(job)
    return (
        [_runtime(job), _train_job(job)] if job.options.kind == "trainjob" else [_pytorch_job(job)]
    )


def to_yaml(documents: list[Manifest]) -> str:
    """The documents as YAML that every parser reads alike."""
    text = yaml.dump_all(
        documents,
        Dumper=_Quoting,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
        explicit_start=True,
    )
    return str(text)


def _train_job(job: Job) -> Manifest:
    trainer = {
        "image": job.options.image,
        "command": ["nanogpt"],
        "args": _arguments(job),
        "numNodes": job.nnodes,
        "numProcPerNode": job.ranks,
        "resourcesPerNode": _resources(job),
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(job),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": job.name,
            },
            "trainer": trainer,
        },
    }


def _runtime(job: Job) -> Manifest:
    """What a TrainJob cannot say: volumes, time to save, what follows which exit code."""
    node = {
        "name": "node",
        "replicas": 1,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,  # a pod alone cannot go on: the JobSet starts all of them again
                "podFailurePolicy": {"rules": _pod_rules()},
                "template": {"spec": {"restartPolicy": "Never", **_pod(job, "node")}},
            },
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(job, {"trainer.kubeflow.org/framework": "torch"}),
        "spec": {
            "mlPolicy": {"numNodes": job.nnodes, "torch": {}},
            "template": {"spec": {"failurePolicy": _failure_policy(job), "replicatedJobs": [node]}},
        },
    }


def _pod_rules() -> list[Manifest]:
    """The PodFailurePolicy of a Job: its message names the exit code."""
    codes = sorted([*NO_RESTART_MENDS, Exit.STOPPED])
    exits = {"containerName": "node", "operator": "In", "values": [int(code) for code in codes]}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]  # drained, preempted, evicted
    return [
        {"action": "FailJob", "onExitCodes": exits},
        {"action": "FailJob", "onPodConditions": disrupted},
    ]


def _failure_policy(job: Job) -> Manifest:
    """The JobSet's policy: stops and disruptions restart for free, failures up to a limit."""
    goes_on = {
        "name": "stopped",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [
            f"exit code {int(Exit.STOPPED)} ",
            "condition DisruptionTarget ",
        ],
    }
    ends = {
        "name": "no_restart_mends",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {"maxRestarts": job.options.backoff_limit, "rules": [goes_on, ends]}


def _pytorch_job(job: Job) -> Manifest:
    replicas = {"Master": 1, "Worker": job.nnodes - 1}
    container = {
        "image": job.options.image,
        "command": ["nanogpt"],
        "args": _arguments(job),
        "resources": _resources(job),
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(job),
        "spec": {
            "nprocPerNode": str(job.ranks),
            # It counts the restarts of every pod, and all of them restart together.
            "runPolicy": {"backoffLimit": job.options.backoff_limit * job.nnodes},
            "pytorchReplicaSpecs": {
                kind: {
                    "replicas": number,
                    "restartPolicy": "OnFailure",
                    "template": {"spec": _pod(job, "pytorch", container)},
                }
                for kind, number in replicas.items()
                if number
            },
        },
    }


def _pod(job: Job, container: str, more: Manifest | None = None) -> Manifest:
    # NCCL wants more than Docker's 64 MB
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    claims = [_claim(text) for text in job.options.pvc or []]
    for number, (claim, path) in enumerate(claims):
        volumes.append({"name": f"pvc-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"pvc-{number}", "mountPath": path})
    image = job.options.image  # a TrainJob's own takes its place, but a runtime has to have one
    return {
        "terminationGracePeriodSeconds": job.shutdown_timeout_s + MARGIN_S,
        "containers": [
            {
                "name": container,
                "image": image,
                **(more or {}),
                **({"workingDir": claims[0][1]} if claims else {}),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _arguments(job: Job) -> list[str]:
    """What stands behind `nanogpt` in a pod.

    Kubernetes fills in $(PET_…), which the operator sets.
    """
    meeting = [
        "--node-rank",
        "$(PET_NODE_RANK)",
        "--rdzv-endpoint",
        "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)",
    ]
    ours = ["launch", *(meeting if job.nnodes > 1 else [])]
    return [*ours, *(text.replace("$(", "$$(") for text in job.launch)]  # $$( stands for itself


def _resources(job: Job) -> Manifest:
    amounts: dict[str, str] = {"cpu": str(job.cpus)}
    if job.options.mem:
        amounts["memory"] = f"{job.options.mem}i"
    gpus = {GPU: str(job.gpus)} if job.gpus else {}
    limits = {**({"memory": amounts["memory"]} if job.options.mem else {}), **gpus}
    return {"requests": {**amounts, **gpus}, **({"limits": limits} if limits else {})}


def _metadata(job: Job, labels: dict[str, str] | None = None) -> Manifest:
    namespace = {"namespace": job.options.namespace} if job.options.namespace else {}
    return {"name": job.name, **namespace, **({"labels": labels} if labels else {})}


def _claim(text: str) -> tuple[str, str]:
    match = re.fullmatch(rf"({LABEL}(?:[.]{LABEL})*):(/[^:\x00-\x1f]+)", text)
    if not match:
        raise UsageError(
            f"--pvc {text!r} is not CLAIM:/mount: write it like --pvc training-data:/work"
        )
    return match[1], text.partition(":")[2]


def _check(job: Job) -> None:
    options = job.options
    if not options.image:
        raise UsageError(
            "--kubernetes needs the container image that nanogpt-dist is installed in: add --image "
            "NAME:TAG"
        )
    if not re.fullmatch(r"[\w./:@-]+", options.image):
        raise UsageError(
            f"--image {options.image!r} is no name of an image: write it like registry/nanogpt:1.0"
        )
    if options.namespace is not None and not re.fullmatch(LABEL, options.namespace):
        raise UsageError(
            f"--namespace {options.namespace!r}: give small letters, digits and hyphens"
        )
    for text in job.arguments:
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"{text!r} is not UTF-8, which a manifest has to be: rename that file")


class _Quoting(yaml.SafeDumper):
    """Quotes all text but plain words: parsers differ on `6e-4`, `1:30` and `on`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # no anchors


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch("[A-Za-z]+", text) and text.lower() not in NO_WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Quoting.add_representer(str, _represent_text)
