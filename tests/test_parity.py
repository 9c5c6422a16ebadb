"""docs/parity.md: no line without a command that is understood or a test that exists, and no
setting missing.
"""

import ast
import re
import shlex
from typing import Any

import pytest

from nanogpt_dist.load_config import load
from tests.conftest import CLONE
from tests.test_readme import understand

ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split(" | ")]
    for line in (CLONE / "docs" / "parity.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| nanoGPT |")
]
TYPED = re.compile(r"`([^`]*\bnanogpt [a-z][^`]*)`")
COMMANDS = sorted({typed for row in ROWS for cell in row for typed in TYPED.findall(cell)})
# Those of train.py.
SETTINGS = re.findall(
    r"\w+",
    """out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log wandb_project
    wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout bias
    learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
    device dtype compile""",  # noqa: E501
)


def test_every_setting_of_nanogpts_has_a_line() -> None:
    assert len(SETTINGS) == 33
    named = {match[1] for row in ROWS if (match := re.match(r"`(\w+)`", row[0]))}
    assert set(SETTINGS) <= named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_line_ends_with_a_test_that_exists(row: list[str]) -> None:
    path, _, name = row[-1].partition("::")
    tree = ast.parse((CLONE / path).read_text("utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row[
        -1
    ]


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_is_understood(typed: str) -> None:
    words = shlex.split(typed)
    understand(words[words.index("nanogpt") + 1 :])


RECIPES: dict[str, dict[str, Any]] = {
    "gpt2-124m": {
        **{
            "batch_size": 12,
            "block_size": 1024,
            "gradient_accumulation_steps": 40,
            "max_iters": 600_000,
        },
        **{
            "eval_interval": 1000,
            "eval_iters": 200,
            "log_interval": 10,
            "weight_decay": 0.1,
            "learning_rate": 6e-4,
        },
    },
    "shakespeare-char": {
        **{
            "n_layer": 6,
            "n_head": 6,
            "n_embd": 384,
            "block_size": 256,
            "batch_size": 64,
            "dropout": 0.2,
        },
        **{
            "learning_rate": 1e-3,
            "max_iters": 5000,
            "min_lr": 1e-4,
            "beta2": 0.99,
            "warmup_iters": 100,
        },
        **{
            "eval_interval": 250,
            "eval_iters": 200,
            "always_save_checkpoint": False,
            "gradient_accumulation_steps": 1,
        },
    },
    "shakespeare-char-cpu": {
        **{
            "n_layer": 4,
            "n_head": 4,
            "n_embd": 128,
            "block_size": 64,
            "batch_size": 12,
            "dropout": 0.0,
        },
        **{"max_iters": 2000, "eval_iters": 20, "always_save_checkpoint": False},
    },
    "finetune-shakespeare": {
        **{
            "init_from": "gpt2-xl",
            "batch_size": 1,
            "gradient_accumulation_steps": 32,
            "max_iters": 20,
        },
        **{"learning_rate": 3e-5, "decay_lr": False, "eval_interval": 5, "eval_iters": 40},
        **{"always_save_checkpoint": False, "dataset": "data/shakespeare"},
    },
    "eval-gpt2": {"init_from": "gpt2", "batch_size": 8, "dataset": "data/openwebtext"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_nanogpts(name: str) -> None:
    config = load(name)
    assert {key: getattr(config, key) for key in RECIPES[name]} == RECIPES[name]
    if name == "gpt2-124m":
        assert config.global_batch_size * config.block_size == 491_520
