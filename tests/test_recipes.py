"""The recipes: what their presets promise, and the sweep that shows what each piece brings."""

import json
import math
import shutil
import tomllib
from pathlib import Path

import pytest

from nanogpt_dist.load_config import load
from nanogpt_dist.presets import MODERN, MODERN_GPU, PRESETS
from tests.conftest import CLONE, SHARED, Run

TINY = SHARED / "data" / "tinyshakespeare.txt"
NANOGPTS_LOSS = 1.9058  # of nanoGPT's recipe for characters on a CPU, over the whole val split


def test_the_modern_sizes_are_gpt2s_with_the_same_tokens_for_each_parameter() -> None:
    for size in ("124m", "350m", "1558m"):
        modern, gpt2 = load(f"modern-{size}"), load(f"gpt2-{size}")
        assert (modern.n_layer, modern.n_embd) == (gpt2.n_layer, gpt2.n_embd)
        assert modern.vocab_size is not None
        weights = 12 * modern.n_layer * modern.n_embd**2 + modern.vocab_size * modern.n_embd
        tokens = modern.max_iters * modern.global_batch_size * modern.block_size
        assert tokens / weights == pytest.approx(12, rel=0.01)


def test_each_piece_of_a_modern_preset_is_off_in_gpt2s() -> None:
    gpt2 = load("gpt2-124m")
    for name in (*MODERN, "qk_norm", "logit_softcap", "residual_scalars", "sliding_window"):
        assert getattr(gpt2, name) != MODERN_GPU[name], name


def test_the_sweep_takes_out_or_adds_every_piece_of_modern_char() -> None:
    runs = tomllib.loads((CLONE / "docs/explanations/recipes.toml").read_text())["run"]
    changed = {name for run in runs for name in run if name != "name"}
    assert set(MODERN) - {"norm"} <= changed
    assert {"smear", "bigram_rows", "qk_norm", "logit_softcap", "value_embeddings"} <= changed


def test_the_sweep_of_the_page_is_valid(nanogpt: Run, tmp_path: Path) -> None:
    shutil.copy(CLONE / "docs/explanations/recipes.toml", tmp_path)
    told = nanogpt("sweep", "recipes.toml", "--dry-run").stdout
    assert told.count("nanogpt train modern-char ") >= 20


@pytest.mark.thorough
@pytest.mark.skipif(not TINY.exists(), reason="needs Tiny Shakespeare")
def test_modern_char_reaches_nanogpts_loss_in_a_tenth_of_its_steps(nanogpt: Run) -> None:
    assert PRESETS["modern-char"]["max_iters"] <= 2000 / 10
    nanogpt("prepare", "shakespeare_char", "--source", TINY)
    log = nanogpt("train", "modern-char").stderr
    first = float(log.split("step 1/180 · loss ")[1].split(" ")[0])
    assert first == pytest.approx(math.log(65), abs=1e-3)  # a head that says nothing yet
    found = json.loads(nanogpt("eval", "out/modern-char", "--json").stdout)
    assert found["val_loss"] <= NANOGPTS_LOSS
