"""The library, built by g++ once for each torch and each state of the sources. Needs no torch."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-DUSE_DISTRIBUTED", "-DUSE_C10D_GLOO"]


class CannotBuildError(Exception):
    """Why there is no library."""


def torch_folder() -> Path:
    """Where torch is installed; it is not imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def cache() -> Path:
    """The folder of built libraries."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nanogpt-dist-tests"


def library() -> Path:
    """The library for the installed torch; built if it is not there.

    Raises CannotBuildError where it cannot be, or where torch has a CUDA of its own.
    """
    if sys.platform != "linux":
        raise CannotBuildError(f"the fake GPU is for Linux, this is {sys.platform}")
    real = [
        name for name in ("cuda", "hip") if (torch_folder() / f"lib/libtorch_{name}.so").exists()
    ]
    if real:
        raise CannotBuildError(f"this torch has {real[0]} itself; the fake GPU is for a CPU build")
    digest = hashlib.sha256(f"{importlib.metadata.version('torch')} {FLAGS}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    path = cache() / f"fakecuda-{digest.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = shutil.which("g++")
    if compiler is None:
        raise CannotBuildError("there is no g++ to build the fake GPU with")
    path.parent.mkdir(parents=True, exist_ok=True)
    # one process builds, the others wait for it
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _build(compiler, path)
    return path


def _build(compiler: str, path: Path) -> None:
    torch = torch_folder()
    includes = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]

    def compiled(source: Path) -> Path:
        target = path.with_suffix(f".{source.stem}.o")
        _run([compiler, *FLAGS, *includes, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cpp"))))
    unfinished = path.with_suffix(".unfinished")
    links = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    _run([compiler, "-shared", *map(str, objects), *links, "-o", str(unfinished)])
    unfinished.rename(path)
    for each in objects:
        each.unlink()


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuildError(f"g++ cannot build the fake GPU: {done.stderr[:2000]}")
