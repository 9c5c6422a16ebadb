"""The whole line from a hub: the right shards whatever happens on the way, normal and streaming, by
one rank or two.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from nanogpt_dist.data import DataFolder
from prepare.units.journal import WORK
from tests.conftest import command, hashes
from tests.prepare.hub_repos import make_openwebtext
from tests.prepare.hub_server import Fault, Hub, hub

REPO = "Skylion007/openwebtext"
DOCUMENTS = 3 * 700


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    make_openwebtext(root, documents_per_file=700)
    return root


def prepare(
    server: Hub,
    folder: Path,
    *options: object,
    returns: int = 0,
    ranks: int = 0,
) -> subprocess.CompletedProcess[str]:
    """`nanogpt prepare openwebtext` in `folder`, from a cache of its own."""
    done = subprocess.run(
        command(
            "prepare",
            "openwebtext",
            "--tokenizer",
            "byte",
            "--out",
            "out",
            "--json",
            *options,
            ranks=ranks,
        ),
        cwd=folder,
        env=server.environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == returns, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with hub(root) as server:
        prepare(server, folder, "--val-fraction", "0.01")
    return folder / "out"


def test_documents_and_split_are_nanogpts(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    texts = make_openwebtext(tmp_path, documents_per_file=700)
    whole = datasets.Dataset.from_dict({"text": texts}).train_test_split(
        test_size=0.01, seed=2357, shuffle=True
    )
    data = DataFolder.open(undisturbed)
    assert data.manifest.sources[0].revision is not None
    assert len(data.manifest.sources[0].revision) == 40
    for ours, theirs in (("train", "train"), ("val", "test")):
        split = data.split(ours)  # type: ignore[arg-type]
        found = data.tokenizer.decode(split.read(0, split.tokens)).split("<|endoftext|>")
        assert sorted(found[:-1]) == sorted(whole[theirs]["text"])
        assert np.array_equal(
            split.document_ends(), np.flatnonzero(split.read(0, split.tokens) == 256) + 1
        )
    assert (data.split("train").documents, data.split("val").documents) == (DOCUMENTS - 21, 21)


TROUBLES = {
    "a 500": [Fault("status", "*train-00001*")],
    "a reset": [Fault("reset", "*train-00001*")],
    "a wrong byte": [Fault("corrupt", "*train-00001*")],
    "a short body": [Fault("cut", "*train-00001*")],
    "all of them": [
        Fault("status", "*train-00000*", status=503),
        Fault("reset", "*train-00002*"),
        Fault("corrupt", "*train-00002*"),
        Fault("status", "*/api/datasets/*", status=429, retry_after_s=0),
        Fault("cut", "*train-00001*"),
    ],
}


@pytest.mark.parametrize("streaming", [False, True], ids=["cache", "streaming"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_shards_are_right_after_trouble(
    trouble: str,
    streaming: bool,
    root: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    faults = [Fault(**vars(fault)) for fault in TROUBLES[trouble]]
    with hub(root, faults=faults) as server:
        prepare(server, tmp_path, "--val-fraction", "0.01", *(["--streaming"] if streaming else []))
        assert all(fault.times == 0 for fault in faults), "the trouble was not met"
    assert hashes(tmp_path / "out") == hashes(undisturbed)
    assert any((tmp_path / "home").rglob("*.parquet")) != streaming, "streaming keeps nothing"


@pytest.mark.parametrize("streaming", [False, True], ids=["cache", "streaming"])
def test_a_repository_with_a_loading_script(
    streaming: bool,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    make_openwebtext(tmp_path / "root", documents_per_file=700, script=True)
    with hub(tmp_path / "root") as server:
        prepare(server, tmp_path, "--val-fraction", "0.01", *(["--streaming"] if streaming else []))
    shards = {
        name: digest
        for name, digest in hashes(undisturbed).items()
        if name.startswith("openwebtext")
    }
    assert {
        name: digest for name, digest in hashes(tmp_path / "out").items() if name in shards
    } == shards


def test_ranks_share_the_files(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    with hub(root) as server:
        prepare(server, tmp_path, "--val-fraction", "0.01", "--streaming", ranks=2)
        sent = [server.bytes_sent(f"*train-{number:05}*") for number in range(3)]
    assert hashes(tmp_path / "out") == hashes(undisturbed)
    sizes = [file.bytes for file in DataFolder.open(undisturbed).manifest.sources[0].files]
    assert all(size <= bytes_ < 2 * size for size, bytes_ in zip(sizes, sent, strict=True)), (
        "fetched by one rank each"
    )


def test_after_a_failure_the_same_command_goes_on(
    root: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    with hub(root, faults=[Fault("status", "*train-00002*", times=None, status=404)]) as server:
        done = prepare(server, tmp_path, "--val-fraction", "0.01", "--streaming", returns=69)
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / WORK).is_dir() or not (tmp_path / "out").exists()
    with hub(root) as server:
        prepare(server, tmp_path, "--val-fraction", "0.01", "--streaming")
    assert hashes(tmp_path / "out") == hashes(undisturbed)


def test_a_finished_folder_needs_no_hub_that_serves_it(
    root: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    with hub(root) as server:
        prepare(server, tmp_path, "--val-fraction", "0.01")
        server.forget()
        again = prepare(server, tmp_path, "--val-fraction", "0.01")
        assert json.loads(again.stdout)["reused"] is True
        assert not server.bytes_sent("*.parquet")


def test_any_other_repository(root: Path, tmp_path: Path) -> None:
    with hub(root) as server:
        environment = server.environment(tmp_path / "home")
        line = [
            "prepare",
            "hf",
            "Skylion007/openwebtext",
            "--tokenizer",
            "byte",
            "--max-documents",
            "900",
            "--json",
        ]
        done = subprocess.run(
            command(*line),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        figures: dict[str, Any] = json.loads(done.stdout)
        assert (figures["out"], figures["documents"]) == ("data/openwebtext", 900)
        data = DataFolder.open(tmp_path / "data" / "openwebtext")
        assert data.manifest.sources[0].address == REPO
        assert data.manifest.sources[0].split is not None
        assert data.manifest.sources[0].split.rule == "documents"
        wrong = subprocess.run(
            command("prepare", "hf", REPO, "--split", "test", "--out", "o"),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert wrong.returncode == 2
        assert "train" in wrong.stderr
    assert os.listdir(tmp_path / "data") == ["openwebtext"]
