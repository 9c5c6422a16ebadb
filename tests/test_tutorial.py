"""The arithmetic of docs/tutorial/the-model-explained.md is what the code computes."""

import re

import pytest
import torch

from nanogpt_dist.load_config import load
from nanogpt_dist.model.attention import attention
from nanogpt_dist.model.gpt import GPT
from tests.conftest import CLONE

PAGE = (CLONE / "docs" / "tutorial" / "the-model-explained.md").read_text("utf-8")


def table(heading: str, columns: int) -> torch.Tensor:
    """The last `columns` numbers of the three rows below a heading of the page: (3, columns)."""
    rows = PAGE[PAGE.index(heading) :].split("\nthe ", 1)[1].splitlines()[:3]
    numbers = [re.findall(r"−∞|\d+(?:\.\d+)?", row) for row in rows]
    return torch.tensor(
        [[float(n.replace("−∞", "-inf")) for n in row[-columns:]] for row in numbers]
    )


def test_attention_by_hand_is_what_the_model_computes() -> None:
    x = table("          x\n", 4)
    w_q = torch.tensor([[2, 0, 4, 0], [0, 1, 0, 0], [2, 3, 0, 0], [0, 1, 0, 0]]).float()
    qkv = torch.cat([x @ w_q, x, 2 * x], 1)
    assert torch.equal(table("q = x W_q", 12), qkv)
    q, k, v = qkv.split(4, 1)
    assert torch.equal(table("q kᵀ    the", 3), q @ k.T)
    scores = (q @ k.T / 2).masked_fill(torch.ones(3, 3).triu(1) == 1, float("-inf"))
    assert torch.equal(table("          the   cat   sat\nthe         1    −∞", 3), scores)
    weights = scores.softmax(1)
    assert torch.allclose(table("           the    cat    sat", 3), weights, atol=5e-4)
    y = attention(q[None, None], k[None, None], v[None, None], None)[0, 0]
    assert torch.allclose(weights @ v, y)
    assert torch.allclose(table("            y\n", 4), y, atol=5e-4)


@pytest.mark.parametrize(
    "preset", ["gpt2-124m", "gpt2", "quickstart", "shakespeare-char-cpu", "shakespeare-char"]
)
def test_parameters_by_hand_are_those_of_the_model(preset: str) -> None:
    with torch.device("meta"):
        model = GPT(load(preset).architecture())
    assert f"{model.num_params():,}" in PAGE


def test_flops_by_hand_are_those_of_the_model() -> None:
    with torch.device("meta"):
        model = GPT(load("gpt2-124m").architecture())
    assert f"{model.flops_per_token():,}" in PAGE
