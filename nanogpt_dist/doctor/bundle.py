"""One .tar.gz for a bug report: the findings, versions, variables, a run's small files; no secrets.

No data set, no prompts, samples or weights are in it, and no file outside of the run. What a log
says is in it, but for what looks like a secret.
"""

import contextlib
import gzip
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from nanogpt_dist import __version__
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.scrub import is_secret_name, known_secrets, scrub_text, scrub_values
from nanogpt_dist.storage.durable import open_plain
from nanogpt_dist.storage.user_file import probe_writable, write_user_file
from nanogpt_dist.toml import parse_toml

MOST_BYTES = 1 << 20  # of a file's end
MOST_NAMES = 2000  # of a run's files
MOST_FILES, MOST_BYTES_OF_RUN = 50, 16 << 20

# Variables whose values are told; those of any other are not, nor is its name.
TOLD = re.compile(
    r"(?i)(NCCL|GLOO|TORCH|TORCHELASTIC|PYTORCH|CUDA|CUBLAS|CUDNN|HIP|ROCR|OMP|KMP|GOMP|MKL|MALLOC"
    r"|TRITON|SLURM|PET|UCX|FI|NANOGPT|TIKTOKEN|HF_HUB|HF_DATASETS|TRANSFORMERS|LC)_\w+"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|GROUP_\w+|ROLE_\w+|LANG|TERM|TMPDIR"
    r"|PYTHON\w*|HF_HOME|HF_ENDPOINT|(https?|all|no)_proxy|WANDB_(MODE|DISABLED|DIR)|CXX|CC"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CONDA_DEFAULT_ENV|KUBERNETES_SERVICE_PORT"
    r"|SSL_CERT_FILE|REQUESTS_CA_BUNDLE"
)
# of those, who someone is
PERSONAL = re.compile(r"(?i)SLURM_\w*(USER|UID|GID|GROUP|ACCOUNT)\w*")
PROMPTS = "sample_prompt"  # a setting: texts of the user's
# of which only the presence is told
SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID")
SYSTEM = (
    *("proc/meminfo", "proc/loadavg", "proc/version", "proc/self/limits", "proc/self/cgroup"),
    *("proc/driver/nvidia/version", "proc/net/dev", "etc/os-release", "sys/fs/cgroup/cpu.max"),
)
OF_RUN = ("config.toml", "run.json", "status.json", "metrics.jsonl", "events.jsonl", "run.lock")
LOGS = ("*.log", "*.out", "*.err", "*stack*.txt")
ABOUT = """\
What `nanogpt doctor --bundle` found, for a report of a bug. Look through it before you send it.

doctor.json       the findings
versions.json     Python, the system, all packages
environment.json  variables that matter to torch, NCCL, Slurm and us
system/           what the kernel says of memory, limits, devices
run/              of a run: settings, state, the end of its metrics, events and logs; file names

What looks like a token, a key, a password or the name of the user is replaced. Weights, data,
prompts and samples are not in it, but for what a program wrote of them into a log: read the logs.
"""


def write_bundle(out: Path, report: dict[str, Any], machine: Machine, run: Path | None) -> None:
    """Write the archive, whole or not at all, with the mode that the umask gives.

    report: what `nanogpt doctor --json` prints.

    Raises: CannotCreateError where `out` is a folder, or its folder takes none; StorageError.
    """
    if not out.exists():
        probe_writable(out.parent)
    secrets = known_secrets(machine.environment)
    ours = {
        "doctor.json": report,
        "versions.json": versions(),
        "environment.json": environment(machine.environment),
    }
    members = {
        name: json.dumps(scrub_values(content, secrets), indent=1) for name, content in ours.items()
    }
    texts = {f"system/{Path(name).name}": machine.read(name) for name in SYSTEM}
    texts["system/cpuinfo"] = machine.read("proc/cpuinfo").partition("\n\n")[0]
    texts["system/nvidia-smi"] = _nvidia_smi()
    if run is not None:
        texts |= _of_run(run)
    for name, text in texts.items():
        if text:
            members[_named(name, secrets, members)] = scrub_text(text, secrets)
    write_user_file(out, _archive({"README.txt": ABOUT, **members}, int(machine.now())))


def versions() -> dict[str, Any]:
    """Of Python, the system and each package that is installed."""
    found = {}
    for each in importlib.metadata.distributions():
        with contextlib.suppress(KeyError, TypeError):  # one that is broken
            found[str(each.metadata["Name"])] = each.version
    return {
        "nanogpt": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "packages": dict(sorted(found.items(), key=lambda pair: pair[0].lower())),
    }


def environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Values of the variables that are TOLD, and which of SECRET are set."""
    told = {
        name: value
        for name, value in sorted(variables.items())
        if TOLD.fullmatch(name) and not PERSONAL.fullmatch(name) and not is_secret_name(name)
    }
    return {"variables": told, "set": [name for name in SECRET if variables.get(name)]}


def _of_run(run: Path) -> dict[str, str]:
    """The ends of a run's small files, and the names of all; a link is not followed.

    MOST_FILES of them, of MOST_BYTES_OF_RUN together: of logs those that stand first.
    """
    paths = [run / name for name in OF_RUN]
    paths += sorted(path for pattern in LOGS for path in run.glob(pattern))
    texts, room = {}, MOST_BYTES_OF_RUN
    for path in paths[:MOST_FILES]:
        text = _end_of(path, min(MOST_BYTES, room))
        texts[f"run/{path.name}"] = text
        room -= len(text.encode())
    texts["run/config.toml"] = _without_prompts(texts["run/config.toml"])
    names = []
    for folder, below, files in os.walk(run):
        below.sort()
        for name in sorted(files):
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                names.append(f"{path.lstat().st_size:>15,}  {path.relative_to(run)}")
        if len(names) > MOST_NAMES:
            break
    return {**texts, "run/files.txt": "\n".join(names[:MOST_NAMES])}


def _named(name: str, secrets: set[str], taken: Mapping[str, str]) -> str:
    """The name of a file in the archive: scrubbed, of any characters, and its own."""
    name = scrub_text(name, secrets).encode("utf-8", "backslashreplace").decode()
    own, number = name, 1
    while own in taken:
        number += 1
        own = f"{name}-{number}"
    return own


def _without_prompts(config: str) -> str:
    """A run's settings but for texts of the user's; where they cannot be read, those before."""
    try:
        settings = parse_toml(config)
    except (ValueError, RecursionError):
        return config.partition(PROMPTS)[0]
    if PROMPTS not in settings:
        return config
    return tomli_w.dumps({name: each for name, each in settings.items() if name != PROMPTS})


def _end_of(path: Path, most: int) -> str:
    """The last lines of a file, `most` bytes at most; nothing of a link."""
    with contextlib.suppress(OSError), open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - most))
        if size > most:
            file.readline()  # the half of one
        return file.read(most).decode("utf-8", errors="replace")
    return ""


def _nvidia_smi() -> str:
    tool = shutil.which("nvidia-smi")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if tool is not None:
            return subprocess.run([tool], capture_output=True, text=True, timeout=10).stdout
    return ""


def _archive(members: Mapping[str, str], time: int) -> bytes:
    """A .tar.gz of texts, without the names and numbers of users."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", fileobj=buffer, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, text in members.items():
            data = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"nanogpt-doctor/{name}")
            entry.size, entry.mtime, entry.mode = len(data), time, 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
