"""A copy of the tree that may be broken: tests run in it use its code, and no other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
PACKAGES = ("cli", "launch", "nanogpt_dist", "prepare", "tests")
LEFT_OUT = (".*", "__pycache__", "build", "dist", "data", "out", "_build", "*.egg-info")


def copy_tree(place: Path) -> Path:
    """Copy what is tracked to the new folder `place`, as it is now; outside of git: nearly all.

    Raises RuntimeError where Python takes another tree's code there.
    """
    try:
        listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except (FileNotFoundError, subprocess.CalledProcessError):
        shutil.copytree(CLONE, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
    else:
        for name in filter(None, listed.split("\0")):
            if (CLONE / name).is_file():  # one that was deleted is still listed
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CLONE / name, place / name)
    if (shared := CLONE.parent / "shared").is_dir() and not (place.parent / "shared").exists():
        (place.parent / "shared").symlink_to(shared)
    check_code(place)
    return place


def environment(tree: Path) -> dict[str, str]:
    """That of whatever is to use the code of `tree`; PYTHONPATH comes before an installation."""
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def check_code(tree: Path) -> None:
    """Raise RuntimeError where a process in another folder does not use the code of `tree`."""
    program = (
        "import importlib, sys\n"
        f"print(*[importlib.import_module(name).__file__ for name in {PACKAGES}], sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree.parent,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=True,
    )
    others = [path for path in done.stdout.splitlines() if tree not in Path(path).parents]
    if others:
        raise RuntimeError(f"a test in {tree} would use {others[0]}")


def git(*arguments: str, tree: Path = CLONE) -> str:
    """What git prints, in `tree` and in no repository around it. Raises CalledProcessError."""
    return subprocess.run(
        ["git", *arguments],
        cwd=tree,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
