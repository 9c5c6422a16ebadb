"""A run with one checkpoint, and a scorer of it."""

from pathlib import Path

import pytest
import torch

from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from tests.nanogpt_dist.interop.models import bpe, make_run
from tests.nanogpt_dist.small import ONE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tasks") / "run", bpe(), bias=True)


@pytest.fixture(scope="module")
def scorer(run: Path) -> Scorer:
    found = find_checkpoint(str(run))
    model, _ = load_model(found, torch.device("cpu"))
    return Scorer(model, load_checkpoint_tokenizer(found), ONE, batch_size=3)
