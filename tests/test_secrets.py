"""Tokens and passwords around a command reach none of its files and none of its lines; its files
have the mode that the umask gives, and none is open to all.
"""

import json
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, fork_server
from tests.nanogpt_dist.doctor.test_bundle import PLANTED

SECRETS = [
    *(value for name, value in PLANTED.items() if "://" not in value),
    *("planted-proxy-pw", "planted-conf-pw", "planted-in-url", "planted-endpoint"),
]
# what only the bundle leaves out: it goes to strangers
PERSONAL = ("planted-alice", "planted-4711", "planted-account")
ADDRESS = "https://bob:planted-in-url@host/x"
TRAIN = ["train", "--dataset", "data", "--out-dir", "out/a", *TINY, "--max-iters", "4"]
TRAIN += ["--eval-interval", "2", "--ema-decay", "0.9"]
IN_LAUNCH = ["--nproc-per-node", "2", "--dry-run"]
LINES = [
    ["prepare", "text", "--source", "text.txt", "--tokenizer", "byte", "--workers", "1"],
    TRAIN,
    ["eval", "out/a", "--batch-size", "4", "--json"],
    ["sample", "out/a", "--max-new-tokens", "3"],
    ["show", "config", "out/a"],
    ["export", "hf", "out/a", "hf"],
    ["export", "nanogpt", "out/a", "ckpt.pt"],
    ["report", "out/a", "--out", "report.html"],
    ["checkpoint", "pin", "out/a/checkpoints/step-00000004"],
    ["tokenizer", "train", "text.txt", "--vocab-size", "260", "--out", "tok.json"],
    ["doctor", "out/a", "--bundle", "--out", "bundle.tar.gz"],
    ["launch", *IN_LAUNCH, *TRAIN],
    ["launch", "--slurm", *IN_LAUNCH, *TRAIN],
    ["launch", "--kubernetes", "--image", "a", *IN_LAUNCH, *TRAIN],
]
LINES[0] += ["--out", "data"]
REFUSED = [
    ["train", "--dataset", ADDRESS, "--out-dir", "out/b"],
    ["train", "--init-from", ADDRESS, "--out-dir", "out/b"],
    ["prepare", "text", "--source", ADDRESS, "--out", "new"],
    ["prepare", "hf", "a/b", "--out", "new"],  # the endpoint below is none
    ["eval", ADDRESS],
    ["sample", ADDRESS],
    ["import", "hf", ADDRESS, "--out-dir", "out/c"],
]


def text_of(folder: Path) -> None:
    words = "To be, or not to be, that is the question: whether 'tis nobler in the mind.\n"
    (folder / "text.txt").write_text(words * 200)


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below `folder`, unpacked where it is an archive."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive.getmembers():
                    file = archive.extractfile(member)
                    yield f"{path.name}: {member.name}", file.read() if file else b""
        elif path.is_file():
            yield str(path), path.read_bytes()


@pytest.mark.thorough
def test_planted_secrets_reach_no_file_and_no_line(tmp_path: Path) -> None:
    text_of(tmp_path)
    home = tmp_path.with_name(f"{tmp_path.name}-home")
    home.mkdir()
    endpoint = "http://bob:planted-endpoint@no host"
    variables = {**PLANTED, "HOME": str(home), "TMPDIR": str(home), "HF_ENDPOINT": endpoint}
    said = ""
    for line in LINES + REFUSED:
        offline = "1" if line in LINES else "0"
        given = {**variables, "HF_HUB_OFFLINE": offline}
        done = fork_server().run(*line, folder=tmp_path, variables=given, code=None)
        if line in LINES:
            # doctor ends as the machine is, and finds the hub's address wrong
            assert done.code == 0 or line[0] == "doctor", done.stderr
        else:
            assert done.code in (2, 65, 66, 69, 78), done.stderr
        said += done.stdout + done.stderr
    assert "***@host" in said, "the address is told, without the password"
    for name, content in [*contents(tmp_path), *contents(home), ("output", said.encode())]:
        for secret in SECRETS:
            if secret in PERSONAL and "bundle" not in name:
                continue
            assert secret.encode() not in content, (name, secret)


@pytest.mark.parametrize(
    "umask",
    [
        0o077,
        pytest.param(0o022, marks=pytest.mark.thorough),
        pytest.param(0o002, marks=pytest.mark.thorough),
    ],
)
def test_files_have_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    text_of(tmp_path)
    (tmp_path / "tmp").mkdir(mode=0o700)
    for line in [*LINES[:2], *LINES[5:8], LINES[10]]:
        program = (
            f"import os, sys; os.umask({umask}); sys.argv[1:] = {json.dumps(line)};"
            "from nanogpt_dist.__main__ import main; main()"
        )
        variables = {"TMPDIR": str(tmp_path / "tmp")}
        done = fork_server().run("-c", program, folder=tmp_path, variables=variables, code=None)
        # what the machine is like decides how doctor ends
        assert done.code == 0 or line[0] == "doctor", done.stderr
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        usual = (0o777 if path.is_dir() else 0o666) & ~umask
        if path != tmp_path / "text.txt":
            assert not mode & ~usual, f"{path} has {mode:o}, the umask gives {usual:o}"
        assert not mode & (stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), f"{path}: {mode:o}"
    for name in (
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints/step-00000004/model.safetensors",
    ):
        assert stat.S_IMODE((tmp_path / "out/a" / name).stat().st_mode) == 0o666 & ~umask, name
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are gone"
