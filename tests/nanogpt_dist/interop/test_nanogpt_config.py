"""nanoGPT's config files: read as literals, never executed."""

from pathlib import Path

import pytest

from cli.options import refuse_nanogpts
from nanogpt_dist.errors import ConfigError, MissingInputError, UsageError
from nanogpt_dist.load_config import load
from tests.conftest import Run

CHAR = '''# a character model; good for debugging
"""and a docstring"""
import time

out_dir = 'out-char'
eval_interval = 250 # keep frequent
wandb_log = False
wandb_run_name = 'mini-gpt-' + str(time.time())
dataset = 'shakespeare_char'
gradient_accumulation_steps = 5 * 8
batch_size = 64
block_size = 256
learning_rate = 1e-3 # with baby networks can afford to go a bit higher
weight_decay = 1
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
device = 'cuda:1'
backend = 'gloo'
init_from = 'scratch'
'''


def test_a_config_of_nanogpts_is_a_config_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "train_char.py"
    path.write_text("\ufeff" + CHAR, encoding="utf-8")  # as Notepad writes
    config = load(str(path), {"n_layer": 3})
    assert (config.out_dir, config.dataset, config.device) == (
        "out-char",
        "data/shakespeare_char",
        "cuda",
    )
    assert (config.gradient_accumulation_steps, config.lr_decay_iters) == (40, 5000)
    assert config.min_lr == pytest.approx(1e-4)
    assert (config.weight_decay, config.n_layer, config.init_from) == (1.0, 3, None)
    assert config.log_interval == 1


def test_what_it_does_not_set_is_as_nanogpt_has_it(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    config = load(str(tmp_path / "empty.py"))
    assert (config.lr_decay_iters, config.log_interval, config.out_dir) == (600_000, 1, "out/empty")
    theirs = {
        "batch_size": 12,
        "block_size": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "dropout": 0.0,
        "bias": False,
        "learning_rate": 6e-4,
        "max_iters": 600_000,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "grad_clip": 1.0,
        "decay_lr": True,
        "warmup_iters": 2000,
        "min_lr": 6e-5,
        "gradient_accumulation_steps": 40,
        "eval_interval": 2000,
        "eval_iters": 200,
    }
    assert {name: getattr(config, name) for name in theirs} == theirs


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch_size = open('x').read()", r"x\.py:1: batch_size is not a literal"),
        pytest.param(
            "dataset = 0x" + "f" * 9999, "a number of thousands of digits", id="no end of digits"
        ),
        ("import os\nos.system('touch executed')", r"x\.py:2 is no assignment"),
        ("if True:\n    batch_size = 3", "is no assignment"),
        ("batch_size = 'a' * 10**9", "not a literal"),
        ("batch_size = 9**9**9", "not a literal"),
        ("batch_size =", "cannot be read as Python"),
        (f"batch_size = {'-' * 100_000}1", "cannot be read as Python: nested too deep"),
        ("learning_rate = (2**50)**60", "input should be a valid number"),
        ("batch_size = -1", "batch_size = -1: input should be greater"),
    ],
)
def test_nothing_is_executed(
    text: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load("x.py")
    assert not Path("executed").exists()
    with pytest.raises(MissingInputError):
        load("y.py")


def test_an_evaluation_of_nanogpts_is_one_of_ours(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "eval_gpt2.py").write_text(
        "batch_size = 8\neval_only = True\ninit_from = 'gpt2-medium'\nwandb_log = False\n"
    )
    config = load(str(tmp_path / "eval_gpt2.py"))
    assert (config.init_from, config.n_layer, config.batch_size) == ("gpt2-medium", 24, 8)
    refused = nanogpt("train", "eval_gpt2.py", code=78)
    assert "says eval_only: type nanogpt eval" in refused.stderr
    refused = nanogpt("eval", tmp_path / "eval_gpt2.py", code=69)
    assert "gpt2-medium is neither in the hub's cache (HF_HOME) nor a folder here" in refused.stderr


@pytest.mark.parametrize("flag", ["--eval_only=True", "--eval-only", "--backend=gloo", "--start=x"])
def test_flags_of_nanogpts_that_are_something_else_here_say_what(flag: str) -> None:
    with pytest.raises(UsageError, match="here: "):
        refuse_nanogpts(["train", flag])


@pytest.mark.parametrize("word", ["scratch", "resume"])
def test_nanogpts_words_for_a_beginning(word: str) -> None:
    assert load("shakespeare-char", {"init_from": word}).init_from is None
