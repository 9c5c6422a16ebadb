"""Python, what is installed, and which of several installations is imported."""

import importlib.machinery
import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nanogpt_dist
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.variables import gpu_files
from nanogpt_dist.errors import Exit

DISTRIBUTION = "nanogpt-dist"
PIP = f"{shlex.quote(sys.executable)} -m pip"  # of this Python: the shell's may be another's
EXTRAS = ("fast", "eval", "plot", "wandb", "fp8")
# what the dependencies are imported as, where that is another name
MODULES = {"pyyaml": "yaml", "splintr-rs": "splintr", "lm-eval": "lm_eval", "tomli-w": "tomli_w"}


def check_installation(machine: Machine) -> Iterator[Check]:
    """Python, the packages that we need, those that are optional, the path, a compiler."""
    yield Check(
        "python",
        "ok",
        f"{platform.python_version()} at {sys.executable}, "
        f"nanogpt {nanogpt_dist.__version__} in {Path(nanogpt_dist.__file__).parent}",
    )
    needed, optional = _requirements()
    yield from _check_versions(needed)
    yield from _check_optional(optional)
    yield from _check_path(machine)
    yield _check_compiler(machine)


def _requirements() -> tuple[list[str], list[str]]:
    """Our dependencies, and those of the extras that users have, as pip writes them."""
    clone = Path(nanogpt_dist.__file__).parents[1] / "pyproject.toml"
    if clone.is_file():
        project = tomllib.loads(clone.read_text("utf-8")).get("project", {})
        extras = project.get("optional-dependencies", {})
        return project.get("dependencies", []), [
            line for extra in EXTRAS for line in extras.get(extra, [])
        ]
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [], []
    needed = [line for line in lines if "extra ==" not in line]
    optional = [
        line.split(";")[0].strip()
        for line in lines
        if any(line.endswith((f"extra == '{extra}'", f'extra == "{extra}"')) for extra in EXTRAS)
    ]
    return needed, optional


def _check_versions(lines: list[str]) -> Iterator[Check]:
    """Each of our dependencies: is it there, and in the range that we were tested with?"""
    from packaging.requirements import Requirement

    well = True
    for line in lines:
        requirement = Requirement(line)
        version = _version(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        well = False
        todo = f"{PIP} install {shlex.quote(line)}"
        if version is None:
            text = f"{requirement.name} is not installed"
            yield Check("packages", "error", text, todo, Exit.MISSING_INPUT)
            continue
        newer = all(
            each.contains(version, prereleases=True)
            for each in requirement.specifier
            if each.operator not in ("<", "<=")
        )
        text = f"{requirement.name} {version} is installed, {requirement.specifier} is needed"
        yield Check("packages", "warning" if newer else "error", text, todo)
    if well:
        yield Check("packages", "ok", f"all {len(lines)} that are needed, in versions that fit")


def _check_optional(lines: list[str]) -> Iterator[Check]:
    from packaging.requirements import Requirement

    there, absent = [], []
    for line in lines:
        requirement = Requirement(line)
        version = _version(requirement.name)
        if version is None:
            absent.append(requirement.name)
        elif requirement.specifier.contains(version, prereleases=True):
            there.append(f"{requirement.name} {version}")
        else:
            text = f"{requirement.name} {version} is installed, {requirement.specifier} is needed"
            yield Check("optional packages", "warning", text, f"{PIP} install {shlex.quote(line)}")
    text = ", ".join(there) or "none"
    yield Check(
        "optional packages", "ok", text + (f"; absent: {', '.join(absent)}" if absent else "")
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_path(machine: Machine) -> Iterator[Check]:
    """Another nanogpt_dist, or a module with the name of one that we need, ahead of it."""
    own = Path(nanogpt_dist.__file__).resolve().parent
    places = {Path(entry or ".").resolve() / own.name for entry in sys.path}
    others = sorted(place for place in places if place != own and (place / "__init__.py").is_file())
    added = machine.environment.get("PYTHONPATH", "").split(os.pathsep)
    folders = [Path(entry).resolve() for entry in added if entry]
    for other in others:
        by_variable = other.parent in folders
        yield Check(
            "imports",
            "warning",
            f"a second installation stands in {other.parent}: `nanogpt` takes {own.parent}, "
            "`python -m nanogpt_dist` may take the other",
            "unset PYTHONPATH" if by_variable else f"{PIP} uninstall {DISTRIBUTION}",
        )
    hidden = _hidden_by(folders)
    for name, place in hidden.items():
        yield Check(
            "imports",
            "error",
            f"{name} is imported from {place}, which PYTHONPATH puts ahead of the installed one",
            "unset PYTHONPATH",
        )
    if not others and not hidden:
        yield Check("imports", "ok", "one nanogpt, and nothing hides a package that it needs")


def _hidden_by(folders: list[Path]) -> dict[str, str]:
    """Modules that we need, which one of `folders` has, too: name → that file.

    A package that is installed in one of them is itself the one that is meant.
    """
    from packaging.requirements import Requirement

    found = {}
    for line in _requirements()[0]:
        package = Requirement(line).name
        name = MODULES.get(package, package.replace("-", "_"))
        for folder in folders:
            installed = list(folder.glob(f"{name}-*.*-info"))
            spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
            # a folder without __init__.py, of data say, hides nothing
            if spec is not None and spec.origin is not None and not installed:
                found[name] = spec.origin
    return found


def _check_compiler(machine: Machine) -> Check:
    """torch.compile makes C++ or calls Triton, which makes C: it needs a compiler."""
    named = machine.environment.get("CXX")
    path = machine.environment.get("PATH")
    compiler = next(
        (name for name in [named or "g++", "clang++"] if shutil.which(name, path=path)), None
    )
    if compiler is None or (named and shutil.which(named, path=path) is None):
        if named is None and not gpu_files(
            machine
        ):  # where nothing is compiled without being asked for
            text = "no g++ is there: --compile fails; on a CPU nothing needs it"
            return Check("compiler", "ok", text)
        return Check(
            "compiler",
            "warning",
            f"{named or 'g++'} is not there, so that torch.compile fails: training on a GPU "
            "compiles by default",
            "unset CXX" if named else "sudo apt install g++  # or train with --no-compile",
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    note = "" if header.is_file() else "; no Python.h, which Triton needs on a GPU"
    return Check("compiler", "ok", f"{compiler}{note}")
