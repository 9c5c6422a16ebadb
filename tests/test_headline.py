"""The commands of the first page, typed as they stand: in an empty folder, an empty home, from a
clone and a wheel.

Nothing is replaced but the hub, by one on this machine that speaks its protocol.
"""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.manifest import SplitRuleRecord
from prepare.corpora import CORPORA
from prepare.units.split import by_hash
from tests.conftest import CLONE, SHARED
from tests.prepare.hub_repos import english, make_catalogue, make_openwebtext
from tests.prepare.hub_server import Hub, hub

# A model that a laptop can train in a second; data set, run folder and preset stay the defaults.
SMALL = (
    "--n-layer 1 --n-head 1 --n-embd 16 --block-size 32 --batch-size 2 "
    "--gradient-accumulation-steps 2 --max-iters 3"
)
SMALL += " --eval-iters 2 --warmup-iters 1"

PARTS = ("cli", "launch", "nanogpt_dist", "prepare", "nanogpt")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    make_openwebtext(root, documents_per_file=100, files=2)
    # c4-en validates with a document in 10,000: look for one that goes there.
    rule = SplitRuleRecord(rule="documents", val_fraction=0.0001, seed=2357)
    kept = next(
        text
        for n in itertools.count()
        if by_hash([(text := f"Story {n}.").encode()], rule) == "val"
    )
    make_catalogue(root, [*english(40, seed=1), kept])
    with hub(root) as server:
        yield server


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages, and its bin/nanogpt."""
    made, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path_factory.mktemp("source")  # a build leaves nothing in the clone
    for part in (*PARTS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (CLONE / part).is_dir() else shutil.copy
        copy(CLONE / part, source / part)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, source],
        check=True,
    )
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", site, next(made.glob("*.whl"))], check=True
    )
    return site


class Person:
    """Types command lines into a shell, in a folder of his own."""

    def __init__(self, folder: Path, web: Hub, site: Path | None = None) -> None:
        self.folder, self.home = folder / "here", folder / "home"
        self.folder.mkdir()
        self.home.mkdir()
        binaries = [*([site / "bin"] if site else []), Path(sys.executable).parent]
        self.environment = {
            **{name: os.environ[name] for name in ("TMPDIR", "LANG") if name in os.environ},
            **({"PYTHONPATH": str(site)} if site else {}),
            "PATH": os.pathsep.join([*map(str, binaries), "/usr/bin", "/bin"]),
            "HOME": str(self.home),
            "HF_ENDPOINT": web.address,
        }

    def types(self, line: str) -> str:
        """What it prints on standard output; it has to end well."""
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        return done.stdout


def next_line(printed: str) -> str:
    return next(
        line.removeprefix("Next: ") for line in printed.splitlines() if line.startswith("Next: ")
    )


def in_a_clone(person: Person) -> Person:
    for part in PARTS:
        copy = shutil.copytree if (CLONE / part).is_dir() else shutil.copy
        copy(CLONE / part, person.folder / part)
    return person


def test_openwebtext_to_a_sample_in_a_clone(web: Hub, tmp_path: Path) -> None:
    person = in_a_clone(Person(tmp_path, web))
    printed = person.types("nanogpt prepare openwebtext")
    assert (
        "or, without a GPU: nanogpt train quickstart --dataset data/openwebtext --out-dir "
        "out/openwebtext" in printed
    )
    assert next_line(printed) == "nanogpt train gpt2-124m"
    printed = person.types(f"torchrun --nproc-per-node 2 nanogpt train {SMALL}")
    assert (person.folder / "out/gpt2-124m/checkpoints/step-00000003").is_dir()
    assert next_line(printed) == "nanogpt sample out/gpt2-124m"
    assert "bits/byte" in person.types("nanogpt eval")
    assert person.types("nanogpt sample")
    assert person.types(next_line(printed))


@pytest.mark.parametrize(
    "line",
    [
        "nanogpt prepare openwebtext --streaming",
        "torchrun --nproc-per-node 2 nanogpt prepare openwebtext",
    ],
)
def test_the_other_ways_to_prepare_openwebtext(line: str, web: Hub, tmp_path: Path) -> None:
    person = in_a_clone(Person(tmp_path, web))
    printed = person.types(line)
    assert next_line(printed) == "nanogpt train gpt2-124m"
    assert "was finished before" in person.types("nanogpt prepare openwebtext")
    assert DataFolder.open(person.folder / "data/openwebtext").manifest.name == "openwebtext"


OF_THE_HUB = [
    corpus.name
    for corpus in CORPORA.values()
    if corpus.origin == "hub" and corpus.name != "openwebtext"
]


@pytest.mark.parametrize("name", [*OF_THE_HUB, "python-stdlib"])
def test_every_corpus_of_the_catalogue_tells_what_to_type_next(
    name: str,
    web: Hub,
    tmp_path: Path,
) -> None:
    person = Person(tmp_path, web)
    printed = person.types(f"nanogpt prepare {name}")
    where = (
        f"gpt2-124m --dataset data/{name} --out-dir out/{name}"
        if name in OF_THE_HUB
        else "quickstart"
    )
    assert next_line(printed) == f"nanogpt train {where}"
    assert DataFolder.open(person.folder / "data" / name).manifest.name == name


@pytest.mark.parametrize(
    ("name", "preset"), [("shakespeare", "gpt2-124m"), ("shakespeare_char", "shakespeare-char")]
)
def test_shakespeare_from_a_file(name: str, preset: str, web: Hub, tmp_path: Path) -> None:
    if not (source := SHARED / "data" / "tinyshakespeare.txt").exists():
        pytest.skip("its text is not here, and is not fetched")
    person = Person(tmp_path, web)
    shutil.copy(source, person.folder / "input.txt")
    printed = person.types(f"nanogpt prepare {name} --source input.txt")
    assert next_line(printed).startswith(f"nanogpt train {preset}")


@pytest.mark.thorough
def test_openwebtext_to_a_sample_from_the_wheel(web: Hub, wheel: Path, tmp_path: Path) -> None:
    person = Person(tmp_path, web, wheel)
    assert next_line(person.types("nanogpt prepare openwebtext")) == "nanogpt train gpt2-124m"
    person.types(f"torchrun --nproc-per-node 2 --no-python nanogpt train {SMALL}")
    printed = person.types(
        f"torchrun --nproc-per-node 2 -m nanogpt_dist train {SMALL} --max-iters 4"
    )
    assert (person.folder / "out/gpt2-124m/checkpoints/step-00000004").is_dir()
    assert "bits/byte" in person.types("nanogpt eval")
    assert person.types("nanogpt sample")
    assert person.types(next_line(printed))
