"""A checkpoint of several ranks is whole or none; what is loaded is what was saved."""

from pathlib import Path

import torch

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import load_model
from tests.conftest import in_ranks


def test_a_checkpoint_has_the_files_of_all_ranks_or_is_none(tmp_path: Path) -> None:
    """Rank 0 seals it when the slowest has written its part; where one fails, all hear of it."""
    in_ranks("sealing", 2, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    [saved] = storage.list_steps(tmp_path / "checkpoints")
    listed = {entry["name"] for entry in storage.read_manifest(saved)["files"]}
    assert {f"model-{part}-of-00002.safetensors" for part in ("00001", "00002")} <= listed
    assert storage.verify(saved) == []


def test_a_tied_head_is_tied_when_loaded(trained: Path) -> None:
    [newest, *_] = storage.list_steps(trained / "checkpoints")
    model, config = load_model(newest, torch.device("cpu"))
    assert config.tie_embeddings
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.training
