"""`nanogpt import-shards`: nanoGPT's train.bin and val.bin, and then `nanogpt train` on them."""

import json
from pathlib import Path

import numpy as np

from nanogpt_dist.data import DataFolder
from tests.conftest import TINY, Run


def test_import_and_train(nanogpt: Run, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, split in DataFolder.open(corpus).splits.items():
        np.append(split.read(0, min(split.tokens, 5000)), 256).astype("<u2").tofile(
            tmp_path / "mine" / f"{name}.bin"
        )
    found = json.loads(nanogpt("import-shards", "mine", "--tokenizer", "byte", "--json").stdout)
    assert {
        "out",
        "dataset_id",
        "train_tokens",
        "val_tokens",
        "documents",
        "vocab_size",
        "seconds",
    } <= found.keys()
    assert (found["train_tokens"], found["documents"], found["eot"], found["shards"]) == (
        5001,
        2,
        "append",
        2,
    )
    assert found["dataset_id"] == DataFolder.open(tmp_path / "mine").dataset_id
    flags = [
        "--dataset",
        "mine",
        *TINY,
        "--max-iters",
        "2",
        "--no-tensorboard",
        "--out-dir",
        "out/a",
        "--json",
    ]
    assert json.loads(nanogpt("train", *flags).stdout)["verdict"] == "done"
    refused = nanogpt("import-shards", "mine", "--tokenizer", "byte", code=73)
    assert "mine is a data folder already; type: nanogpt verify mine" in refused.stderr


def test_the_summary_says_what_to_type_next(nanogpt: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("train", "val"):
        np.arange(100).astype("<u2").tofile(tmp_path / "mine" / f"{name}.bin")
    done = nanogpt("import-shards", "mine/train.bin", "mine/val.bin", "--tokenizer", "byte")
    where = "--dataset mine --out-dir out/mine --block-size 99"  # of 100 tokens
    assert done.stdout.endswith(
        f"Next: nanogpt train gpt2-124m {where}\nor, without a GPU: nanogpt train quickstart "
        f"{where}\n"
    )
    assert done.stderr == ""
    assert (
        "gpt2, byte" in nanogpt("import-shards", "mine", "--tokenizer", "nothing", code=66).stderr
    )
