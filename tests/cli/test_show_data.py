"""`nanogpt show data`: figures, documents, and exactly the sequences that an update of a run was
trained on.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from nanogpt_dist.checkpoint import load_config
from nanogpt_dist.data import DataFolder, Manifest
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.training.plan import read_plan
from tests.conftest import TINY, Run, build, write_jsonl


def test_the_figures_and_where_they_come_from(nanogpt: Run, prepared: Path) -> None:
    data = DataFolder.open(prepared)
    text = nanogpt("show", "data", prepared).stdout
    for word in (
        data.dataset_id,
        f"{data.split('train').tokens:,}",
        "bpe:300",
        "by documents",
        "seed 2357",
        "limit  ",
    ):
        assert word in text
    found = json.loads(nanogpt("show", "data", prepared, "--json").stdout)
    assert found["dataset_id"] == data.dataset_id
    assert found["splits"]["val"]["documents"] == data.split("val").documents
    assert found["sources"][0]["corpus"] == "text"


def test_a_document_is_the_text_that_went_in(nanogpt: Run, tmp_path: Path) -> None:
    texts = [f"document {i}, café\n" * (1 + i % 3) for i in range(40)]
    build(
        "text",
        tmp_path / "d",
        [write_jsonl(tmp_path / "a.jsonl", texts)],
        tokenizer="byte",
        val_fraction=0.3,
    )
    found = [
        nanogpt("show", "data", "d", "--document", 2, "--split", split).stdout[:-1]
        for split in ("train", "val")
    ]
    assert found[0] != found[1]
    assert all(text in texts for text in found)
    document = json.loads(nanogpt("show", "data", "d", "--document", 2, "--json").stdout)[
        "document"
    ]
    assert (document["text"], document["tokens"]) == (found[0], len(found[0].encode()))
    count = DataFolder.open(tmp_path / "d").split("val").documents
    refused = nanogpt("show", "data", "d", "--document", 99, "--split", "val", code=2).stderr
    assert f"val has {count}; give 0 to {count - 1}" in refused


def test_a_step_is_what_the_ranks_of_that_run_read(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    flags = [
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        "2",
        "--no-tensorboard",
        "--seed",
        "7",
        "--out-dir",
        "out/a",
    ]
    trained = json.loads(nanogpt("train", *flags, "--json").stdout)
    found = json.loads(
        nanogpt("show", "data", corpus, "--step", 1, "--run", "out/a", "--json").stdout
    )
    data, config = DataFolder.open(corpus), load_config(tmp_path / trained["checkpoint"])
    assert found["order"] == {
        "seed": 7,
        "block_size": 32,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    delivered: list[np.ndarray] = []
    for rank in range(2):  # as two ranks would share it out
        batches, _ = read_plan(
            config,
            data,
            World(rank, rank, 2, torch.device("cpu"), None),
            Layout("ddp", 2, 1, batch_size=4),
            torch.float32,
        )
        delivered += [np.concatenate([x, y[:, -1:]], axis=1) for x, y in batches.of(1)]
    train = data.split("train")
    shown = [train.read(sequence["start"], 33) for sequence in found["sequences"]]
    assert np.array_equal(np.concatenate(delivered), np.stack(shown))
    assert [sequence["index"] for sequence in found["sequences"]] == list(range(8))
    for ids, sequence in zip(shown, found["sequences"], strict=True):
        assert sequence["text"] == " ".join(data.tokenizer.decode(ids).split())[:60]
        assert sequence["documents"] == [0, 0]  # one text was cut in two
    without = [
        "--seed",
        7,
        "--block-size",
        32,
        "--batch-size",
        4,
        "--gradient-accumulation-steps",
        2,
    ]
    assert (
        json.loads(nanogpt("show", "data", corpus, "--step", 1, *without, "--json").stdout) == found
    )
    lines = nanogpt(
        "show", "data", corpus, "--step", 1, "--run", trained["checkpoint"]
    ).stdout.splitlines()
    assert len(lines) == 2 + 8
    ramps = ["--batch-ramp", "0:2,1:3", "--context-ramp", "0:8,2:32"]
    lines = nanogpt("show", "data", corpus, "--step", 1, *without, *ramps).stdout.splitlines()
    assert len(lines) == 2 + 3
    assert lines[0] == (
        "step after 1 steps; seed 7, block_size 32, batch_size 4, gradient_accumulation_steps 2, "
        "batch_ramp 0:2,1:3, context_ramp 0:8,2:32"
    )
    other = Path(shutil.copytree(corpus, tmp_path / "other"))
    content = json.loads((other / "manifest.json").read_text())
    assert content.pop("sha256")
    renamed = Manifest.model_validate({**content, "name": "other"})
    (other / "manifest.json").write_bytes(renamed.to_bytes())
    refused = nanogpt("show", "data", "other", "--step", 1, "--run", "out/a", code=65).stderr
    assert f"out/a was trained on data set {data.dataset_id[:12]}, other is" in refused


def test_flags_that_do_not_go_together(nanogpt: Run, corpus: Path) -> None:
    for flags, words in [
        (["--document", 1, "--step", 1], "ask one"),
        (["--split", "val"], "--split is for --document"),
        (["--seed", 1], "type --step 0"),
        (["--step", 1, "--run", "out/a", "--batch-size", 3], "leave --batch-size out"),
    ]:
        assert words in nanogpt("show", "data", corpus, *flags, code=2).stderr
    assert (
        "out/a is no run"
        in nanogpt("show", "data", corpus, "--step", 1, "--run", "out/a", code=66).stderr
    )
