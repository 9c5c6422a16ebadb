"""What is installed, beside .ci/lock.txt: versions, files, known advisories.

    make audit      or: python .ci/audit.py
    python .ci/audit.py --lock      write the lock anew, from what is installed, by asking pip

The lock has one line for each distribution: its version, and the sha256 of the archive that pip
takes for it. Nothing is sent but by pip and pip-audit, as they are set up.

1. Each distribution that is installed stands in the lock, with its version, and vice versa.
2. Each file of each distribution has the sha256 that the distribution's own list says.
3. pip-audit, where it is installed and its source of advisories answers, knows of no advisory.
   Otherwise that is said, and is no failure.
"""

import argparse
import base64
import hashlib
import json
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).with_name("lock.txt")
# our own; what venv puts in; torch: each machine has another build (CPU, CUDA) and another sha256
LEFT_OUT = {"nanogpt-dist", "pip", "setuptools", "torch"}
HEAD = """\
# The development environment, as pip resolves it for {platform}: python .ci/audit.py --lock
# To install just this: pip install --require-hashes --no-deps -r .ci/lock.txt
# Left out: torch, of which each machine has another build (CPU, CUDA), with another sha256.
"""


def installed() -> dict[str, metadata.Distribution]:
    """The distributions of this environment, by their normal names."""
    found = {}
    for each in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower()
        if name not in LEFT_OUT and not name.startswith("nvidia-"):
            found[name] = each
    return found


def read_lock() -> dict[str, str]:
    """{name: version} of the lock. Raises ValueError for a line without a sha256."""
    found = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
            if match is None:
                raise ValueError(f"{LOCK.name}: {line!r} is no name, version and sha256")
            found[match[1]] = match[2]
    return found


def differences(here: dict[str, str], locked: dict[str, str]) -> list[str]:
    """In words, where versions differ or one of the two lacks a distribution."""
    found = []
    for name in sorted(here.keys() | locked.keys()):
        if here.get(name) != locked.get(name):
            told = [
                f"{where} {of.get(name, 'not there')}"
                for where, of in (("installed", here), ("lock", locked))
            ]
            found.append(f"{name}: {', '.join(told)}")
    return found


def changed_files(each: metadata.Distribution) -> list[str]:
    """Files of a distribution whose bytes are not those that its own list says.

    Commands are left out: pip writes them, for the place where they lie. So is a top-level `test`,
    which several distributions bring, and the last one wins.
    """
    found = []
    for file in each.files or []:
        if file.hash is None or ".." in file.parts or file.parts[0] in ("test", "tests"):
            continue
        path = Path(str(file.locate()))
        digest = hashlib.new(file.hash.mode, path.read_bytes() if path.is_file() else b"").digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            what = "changed" if path.is_file() else "gone"
            found.append(f"{each.metadata['Name']}: {file} is {what}")
    return found


def advisories() -> tuple[bool, str]:
    """Whether pip-audit found none, or could not look; and what it says."""
    try:
        metadata.version("pip-audit")
    except metadata.PackageNotFoundError:
        return True, "could not look up advisories: type pip install pip-audit"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "audit.json"
        line = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]
        line += ["-r", str(LOCK), "-f", "json", "-o", str(out), "--progress-spinner", "off"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=300)
            told = json.loads(out.read_text(encoding="utf-8"))["dependencies"]
        except (subprocess.TimeoutExpired, OSError, ValueError, KeyError):
            return True, "could not look up advisories: their source does not answer"
    known = [
        f"{each['name']} {each.get('version')}: {fault['id']}"
        for each in told
        for fault in each.get("vulns", [])
    ]
    if done.returncode and not known:
        return True, "could not look up advisories: pip-audit did not finish"
    return not known, "\n".join(known) or f"no advisory for {len(told)} distributions"


def write_lock() -> None:
    """Ask pip which archive it would take of each, and note its sha256."""
    pins = [f"{name}=={each.version}" for name, each in sorted(installed().items())]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        line = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        subprocess.run([*line, "--ignore-installed", "--report", str(out), *pins], check=True)
        report = json.loads(out.read_text(encoding="utf-8"))["install"]
    lines = []
    for each in report:
        name = re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower()
        sha256 = each["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={each['metadata']['version']} --hash=sha256:{sha256}\n")
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    head = HEAD.format(platform=f"{python} on {platform.system()} {platform.machine()}")
    LOCK.write_text(head + "".join(sorted(lines)), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", action="store_true", help="write the lock anew")
    if parser.parse_args().lock:
        write_lock()
        return 0
    there = installed()
    wrong = differences({name: each.version for name, each in there.items()}, read_lock())
    for each in there.values():
        wrong += changed_files(each)
    good, told = advisories()
    print(*wrong, told, sep="\n")
    print(f"{len(there)} distributions, {len(wrong)} differences from {LOCK.name}")
    return int(bool(wrong) or not good)


if __name__ == "__main__":
    sys.exit(main())
