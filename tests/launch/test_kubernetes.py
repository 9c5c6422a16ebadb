"""`nanogpt launch --kubernetes`: manifests that Kubeflow's own models take whole, and exact
arguments.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from launch import job_options, kubernetes
from nanogpt_dist.errors import MAX_LINE, CannotCreateError, Exit, UsageError

FULL = {
    "image": "registry:5000/team/nanogpt@sha256:0a",
    "namespace": "team-a",
    "pvc": ["training-data:/work", "scratch.b:/scratch"],
    "mem": "64G",
    "cpus_per_task": 32,
}


def job(
    *arguments: str,
    nnodes: int = 4,
    ranks: str = "8",
    timeout_s: int = 60,
    **given: Any,
) -> job_options.Job:
    options = {"image": "nanogpt:1", **given}
    return job_options.make(
        nnodes, ranks, list(arguments) or ["train"], options, 0, timeout_s, Path.cwd()
    )


def made(**how: Any) -> list[dict[str, Any]]:
    """The manifests as they are read back from the YAML."""
    return list(yaml.safe_load_all(kubernetes.to_yaml(kubernetes.manifests(job(**how)))))


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs of all pods."""
    if documents[0]["kind"] == "PyTorchJob":
        return [
            replica["template"]["spec"]
            for replica in documents[0]["spec"]["pytorchReplicaSpecs"].values()
        ]
    jobs = documents[0]["spec"]["template"]["spec"]["replicatedJobs"]
    return [each["template"]["spec"]["template"]["spec"] for each in jobs]


def arguments_in(documents: list[dict[str, Any]]) -> list[str]:
    if documents[0]["kind"] == "PyTorchJob":
        return list(pods(documents)[0]["containers"][0]["args"])
    return list(documents[1]["spec"]["trainer"]["args"])


def expand(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of an argument: $(NAME) is the variable, $$ is a dollar; the rest
    stays.
    """

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", value, text)


# ---- Kubeflow's models: they drop what they do not know, so what comes out has to be what went in


@pytest.mark.parametrize("how", [FULL, {"gpus_per_node": 0, "nnodes": 1}], ids=["full", "small"])
def test_trainjob_and_runtime_are_what_kubeflow_takes(how: dict[str, Any]) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    runtime, train_job = made(**how)
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    assert models.TrainerV1alpha1TrainJob.from_dict(train_job).to_dict() == train_job
    train_job["spec"]["trainer"]["numNode"] = 4
    assert models.TrainerV1alpha1TrainJob.from_dict(train_job).to_dict() != train_job


@pytest.mark.parametrize("how", [FULL, {"gpus_per_node": 0, "nnodes": 1}], ids=["full", "small"])
def test_pytorchjob_is_what_kubeflow_takes(how: dict[str, Any]) -> None:
    client = pytest.importorskip("kubeflow.training.api_client").ApiClient()

    def through(manifest: dict[str, Any]) -> dict[str, Any]:
        read = client.deserialize(
            SimpleNamespace(data=json.dumps(manifest)), "KubeflowOrgV1PyTorchJob"
        )
        return dict(client.sanitize_for_serialization(read))

    (manifest,) = made(**how, kind="pytorchjob")
    assert through(manifest) == manifest
    pods([manifest])[0]["workingdir"] = "/work"
    assert through(manifest) != manifest


# ---- what they say


@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob"])
def test_a_pod_has_time_to_save_and_keeps_its_checkpoints(kind: str) -> None:
    documents = made(**FULL, kind=kind, timeout_s=300)
    assert all(
        document["metadata"] == {**document["metadata"], "namespace": "team-a"}
        for document in documents
    )
    for pod in pods(documents):
        assert pod["terminationGracePeriodSeconds"] == 300 + kubernetes.MARGIN_S
        (container,) = pod["containers"]
        assert container["workingDir"] == "/work"
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [
            "/dev/shm",
            "/work",
            "/scratch",
        ]
        names = [volume["name"] for volume in pod["volumes"]]
        assert names == [mount["name"] for mount in container["volumeMounts"]]
        assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory"}
        assert pod["volumes"][2]["persistentVolumeClaim"] == {"claimName": "scratch.b"}


def test_trainjob_restarts_what_a_restart_mends() -> None:
    runtime, train_job = made(backoff_limit=3)
    assert train_job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert (
        train_job["spec"]["trainer"]["numNodes"],
        train_job["spec"]["trainer"]["numProcPerNode"],
    ) == (4, 8)
    jobset = runtime["spec"]["template"]["spec"]
    spec = jobset["replicatedJobs"][0]["template"]["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert codes == sorted(codes)  # Kubernetes refuses others
    assert Exit.STOPPED in codes
    assert not {Exit.BUG, Exit.IO_ERROR, Exit.HUB_UNAVAILABLE} & set(codes)
    goes_on, ends = jobset["failurePolicy"]["rules"]
    assert (jobset["failurePolicy"]["maxRestarts"], ends["action"]) == (3, "FailJobSet")
    # As Kubernetes' job controller words it.
    told = (
        "Container node for pod team-a/x-node-0-0 failed with exit code {} matching FailJob rule "
        "at index 0"
    )
    patterns = goes_on["onJobFailureMessagePatterns"]
    for message, expected in [
        (told.format(75), True),
        (told.format(78), False),
        ("Pod team-a/x has condition DisruptionTarget matching FailJob rule at index 1", True),
    ]:
        assert any(re.search(pattern, message) for pattern in patterns) == expected


def test_pytorchjob_has_a_master_and_workers() -> None:
    (manifest,) = made(kind="pytorchjob", backoff_limit=3)
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert {kind: replica["replicas"] for kind, replica in replicas.items()} == {
        "Master": 1,
        "Worker": 3,
    }
    assert manifest["spec"]["nprocPerNode"] == "8"
    assert manifest["spec"]["runPolicy"]["backoffLimit"] == 12
    assert {
        replica["template"]["spec"]["containers"][0]["name"] for replica in replicas.values()
    } == {"pytorch"}
    (alone,) = made(kind="pytorchjob", nnodes=1)
    assert list(alone["spec"]["pytorchReplicaSpecs"]) == ["Master"]


@pytest.mark.parametrize("gpus", [0, 4])
def test_resources(gpus: int) -> None:
    wanted = made(**FULL, gpus_per_node=gpus)[1]["spec"]["trainer"]["resourcesPerNode"]
    extra = {"nvidia.com/gpu": "4"} if gpus else {}
    assert wanted["requests"] == {"cpu": "32", "memory": "64Gi", **extra}
    assert wanted["limits"] == {"memory": "64Gi", **extra}


# ---- exact arguments


@settings(max_examples=30)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5)
)
def test_a_pod_gets_the_exact_arguments(arguments: list[str]) -> None:
    set_by_kubeflow = {
        "PET_NODE_RANK": "3",
        "PET_MASTER_ADDR": "x-node-0-0.x",
        "PET_MASTER_PORT": "29500",
    }
    made_of = yaml.safe_load_all(kubernetes.to_yaml(kubernetes.manifests(job("train", *arguments))))
    found = [expand(text, set_by_kubeflow) for text in arguments_in(list(made_of))]
    assert found == [
        *("launch", "--node-rank", "3", "--rdzv-endpoint", "x-node-0-0.x:29500", "--nnodes", "4"),
        *(
            "--nproc-per-node",
            "8",
            "--max-restarts",
            "0",
            "--shutdown-timeout",
            "60",
            "train",
            *arguments,
        ),
    ]


@pytest.mark.parametrize(
    "text", ["6e-4", "0x1f", "on", "no", "1:30", "null", "~", "1_000", ".5", "5", "=", "*a", "a: b"]
)
def test_other_parsers_of_yaml_take_text_for_text(text: str) -> None:
    """PyYAML leaves 6e-4 bare; the parser of kubectl reads a number, and the API refuses it."""
    line = next(
        line
        for line in kubernetes.to_yaml([{"args": [text]}]).splitlines()
        if line.strip().startswith("- ")
    )
    assert line.strip() == f'- "{text}"'


def test_one_node_needs_no_meeting_place() -> None:
    assert arguments_in(made(nnodes=1))[:3] == ["launch", "--nnodes", "1"]


# ---- the command line


def launch(*arguments: str) -> Any:
    result = CliRunner().invoke(
        app, ["launch", "--kubernetes", "--nproc-per-node", "8", *arguments]
    )
    if result.exception:
        raise result.exception
    return result


def test_the_manifest_goes_to_standard_output_or_a_file(tmp_path: Path) -> None:
    line = ["--nnodes", "2", "--image", "nanogpt:1", "--pvc", "data:/work", "train", "gpt2-124m"]
    printed = launch(*line).stdout
    assert [document["kind"] for document in yaml.safe_load_all(printed)] == [
        "TrainingRuntime",
        "TrainJob",
    ]
    path = tmp_path / "job.yaml"
    assert launch("--output", str(path), "--dry-run", *line).stdout == printed
    assert not path.exists()
    assert launch("--output", str(path), *line).stdout == f"Next: kubectl create -f {path}\n"
    assert path.read_text() == printed
    with pytest.raises(CannotCreateError, match="give another --output"):
        launch("--output", str(tmp_path / "no" / "job.yaml"), *line)


def test_a_job_without_a_volume_is_warned_of() -> None:
    assert (
        "without --pvc CLAIM:/mount the checkpoints end" in launch("--image", "a", "train").stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "add --image NAME:TAG"),
        (["--image", "a b", "train"], "is no name of an image"),
        (["--image", "a", "--namespace", "A", "train"], "--namespace 'A'"),
        (["--image", "a", "--pvc", "data", "train"], "--pvc training-data:/work"),
        (["--image", "a", "--pvc", "Data:/work", "train"], "not CLAIM:/mount"),
        (["--image", "a", "--partition", "gpu", "train"], "add --slurm"),
        (["--image", "a", "train", "caf\udce9"], "is not UTF-8"),
        (["--image", "a", "train", "--fresh"], "leave out --fresh"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        launch(*arguments)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= MAX_LINE
