"""The archive for a bug report: whole, useful, and without one secret of many that are planted."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from cli.doctor import doctor
from nanogpt_dist.doctor import bundle
from nanogpt_dist.doctor.bundle import write_bundle
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.errors import UsageError
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
    "NCCL_PWD": "planted-pwd-told",
    "MYSQL_PWD": "planted-pwd",
    "SLURM_JOB_USER": "planted-alice",
    "SLURM_JOB_UID": "planted-4711",
    "SLURM_JOB_ACCOUNT": "planted-account",
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
    *("planted prompt", "planted-in-json", "planted-cookie", "planted-block", "hf_InANameOfAFile1"),
]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run in whose files secrets stand, and others' secrets plainly."""
    run = tmp_path / "out/a"
    shutil.copytree(trained, run)
    with (run / "config.toml").open("a") as file:
        file.write('\nsample_prompt = ["""\nhub_prompt = 1, a planted prompt"""]')
        file.write('\nhub = "https://bob:planted-in-config@hub.example/x"\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "note": "secret=planted-in-metrics"}\n')
    lines = [f"read {secret}" for secret in FILES.values()]
    lines += [f"got {PLANTED['AWS_SECRET_ACCESS_KEY']}", "password: planted-in-log"]
    lines += ["nanogpt train --hub-token planted-flag", "key AKIAPLANTEDPLANTED12"]
    lines += [r'{"a": "{\"api_key\": \"a planted-in-json\"}"}', "Cookie: a=b; c=planted-cookie"]
    lines += ["token: |", "  planted-block", "next: 1"]
    (run / "hf_InANameOfAFile1.log").write_text("x")
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
    assert b"sample_prompt" not in contents["run/config.toml"]
    assert "run/***.log" in contents
    assert b"learning_rate" in contents["run/config.toml"]
    assert contents["run/metrics.jsonl"].count(b'"loss"') == 2
    assert b"state.json" in contents["run/files.txt"]


def bundle_of(run: Path, out: Path) -> dict[str, bytes]:
    """What is in the archive, without a look at the machine."""
    write_bundle(out, {"checks": []}, Machine(environment={}), run)
    with tarfile.open(out) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_any_name_of_a_file_may_stand_in_a_run(tmp_path: Path) -> None:
    run = tmp_path / "a"
    run.mkdir()
    (run / f"{'long' * 50}.log").write_text("of a long name")
    Path(os.fsdecode(os.fsencode(run) + b"/caf\xe9.log")).write_text("not of UTF-8")
    contents = bundle_of(run, tmp_path / "x.tar.gz")
    assert contents[f"nanogpt-doctor/run/{'long' * 50}.log"] == b"of a long name"
    assert contents["nanogpt-doctor/run/caf\\udce9.log"] == b"not of UTF-8"
    assert b"caf\\udce9.log" in contents["nanogpt-doctor/run/files.txt"]


def test_a_run_with_many_or_large_logs_gives_a_small_bundle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES_OF_RUN", 5000)
    monkeypatch.setattr(bundle, "MOST_BYTES", 2000)
    run = tmp_path / "a"
    run.mkdir()
    for number in range(100):
        (run / f"{number:03}.log").write_text(500 * "a line\n" if number < 9 else "")
    contents = bundle_of(run, tmp_path / "x.tar.gz")
    logs = [text for name, text in contents.items() if name.endswith(".log")]
    assert 2 <= len(logs) <= 3
    assert sum(map(len, logs)) <= 5000
    assert contents["nanogpt-doctor/run/files.txt"].count(b".log") == 100
    monkeypatch.undo()
    for path in run.iterdir():
        path.write_text("short")
    contents = bundle_of(run, tmp_path / "x.tar.gz")
    assert sum(name.endswith(".log") for name in contents) == 50 - len(bundle.OF_RUN)


@pytest.mark.parametrize("text", ["[\nsome text", f"{'9' * 5000}\n", f"{'[' * 5000}\n"])
def test_settings_that_cannot_be_read_are_told_up_to_the_prompts(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"seed = 1\nsample_prompt = {text}")
    contents = bundle_of(tmp_path, tmp_path / "x.tar.gz")
    assert contents["nanogpt-doctor/run/config.toml"] == b"seed = 1\n"


def test_a_bundle_without_a_file_is_named_by_the_time_and_out_needs_it(tmp_path: Path) -> None:
    line = command("doctor", "--out", "x.tar.gz")
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "add --bundle" in done.stderr


@pytest.mark.parametrize(
    ("out", "typed"),
    [("x.zip", "x.tar.gz"), ("x.tar", "x.tar.gz"), ("my report", "'my report.tar.gz'")],
)
def test_a_bundle_under_the_name_of_another_kind_of_file_is_refused(out: str, typed: str) -> None:
    with pytest.raises(UsageError, match=f"type --out {re.escape(typed)}$"):
        doctor(bundle=True, out=Path(out))
    assert not Path(out).exists()
