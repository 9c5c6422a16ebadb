"""The archive for a bug report: whole, useful, and without one secret of many that are planted."""

import json
import os
import shutil
import subprocess
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import command

PLANTED = {
    "HF_TOKEN": "hf_PlantedTokenAbcdefghijklmnop",
    "WANDB_API_KEY": "feedfacefeedfacefeedfacefeedfacefeedface",
    "AWS_SECRET_ACCESS_KEY": "wJalrPlanted/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "SLURM_JWT": "planted-jwt-of-slurm",
    "NCCL_MY_PASSWORD": "planted-in-a-told-name",
    "HTTPS_PROXY": "http://bob:planted-proxy-pw@127.0.0.1:9",
    "NCCL_CONF_FILE": "https://planted-user:planted-conf-pw@host/nccl.conf",
    "GH_DEPLOY_CREDENTIAL": "planted-deploy",
}
FILES = {
    ".netrc": "machine api.wandb.ai login user password planted-in-netrc\n",
    ".aws/credentials": "[default]\naws_secret_access_key = planted/in/aws\n",
    "hub/token": "planted-in-token-file",
}
SECRETS = [
    *(value for name, value in PLANTED.items() if "://" not in value),
    *("planted-proxy-pw", "planted-conf-pw", "planted-user", "planted-in-netrc", "planted/in/aws"),
    *(
        "planted-in-token-file",
        "planted-in-config",
        "planted-in-log",
        "planted-flag",
        "AKIAPLANTED",
    ),
    *("planted-behind-a-link", "planted-in-metrics", "planted text of a sample"),
]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run in whose files secrets stand, and others' secrets plainly."""
    run = tmp_path / "out/a"
    shutil.copytree(trained, run)
    with (run / "config.toml").open("a") as file:
        file.write('\nhub = "https://bob:planted-in-config@hub.example/x"\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "note": "secret=planted-in-metrics"}\n')
    lines = [f"read {secret}" for secret in FILES.values()]
    lines += [f"got {PLANTED['AWS_SECRET_ACCESS_KEY']}", "password: planted-in-log"]
    lines += ["nanogpt train --hub-token planted-flag", "key AKIAPLANTEDPLANTED12"]
    (run / "train.log").write_text("\n".join(lines))
    (run / "samples.jsonl").write_text('{"text": "planted text of a sample"}\n')
    (run / "events.jsonl").unlink(missing_ok=True)
    (tmp_path / "outside").write_text("planted-behind-a-link")
    (run / "events.jsonl").symlink_to(tmp_path / "outside")
    return run


def test_nothing_secret_is_in_the_bundle_and_the_rest_is(run: Path, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    line = command("doctor", run, "--bundle", "--out", "report.tar.gz")
    environment = {**os.environ, **PLANTED, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: os.umask(0o027),
    )
    assert "report.tar.gz is written" in done.stdout, done.stderr
    assert (tmp_path / "report.tar.gz").stat().st_mode & 0o777 == 0o640
    assert not list(tmp_path.glob(".tmp-*"))
    contents = {}
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        for member in archive.getmembers():
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            file = archive.extractfile(member)
            assert file is not None
            contents[member.name.removeprefix("nanogpt-doctor/")] = file.read()
    for name, content in {**contents, "printed": (done.stdout + done.stderr).encode()}.items():
        for secret in SECRETS:
            assert secret.encode() not in content, (name, secret)
            assert secret not in name
        assert str(tmp_path).encode() not in content or name == "printed", name
    assert set(contents) >= {
        *("README.txt", "doctor.json", "versions.json", "environment.json", "system/meminfo"),
        *("run/config.toml", "run/run.json", "run/status.json", "run/metrics.jsonl"),
        *("run/train.log", "run/files.txt"),
    }
    assert "run/events.jsonl" not in contents
    report = json.loads(contents["doctor.json"])
    assert {check["name"] for check in report["checks"]} >= {"device", "disk", "memory"}
    assert json.loads(contents["versions.json"])["packages"]["tiktoken"] == version("tiktoken")
    assert json.loads(contents["environment.json"])["set"] == ["HF_TOKEN", "WANDB_API_KEY"]
    assert b"learning_rate" in contents["run/config.toml"]
    assert contents["run/metrics.jsonl"].count(b'"loss"') == 2
    assert b"state.json" in contents["run/files.txt"]


def test_a_bundle_without_a_file_is_named_by_the_time_and_out_needs_it(tmp_path: Path) -> None:
    line = command("doctor", "--out", "x.tar.gz")
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "add --bundle" in done.stderr
