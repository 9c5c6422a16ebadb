"""One head, taken apart, is the one of the forward pass."""

import pytest
import torch

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import UsageError
from nanogpt_dist.inspect.attention_head import inspect_head
from nanogpt_dist.model.gpt import GPT
from tests.nanogpt_dist.model.test_options import OPTIONS, SMALL


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_head_is_the_one_of_the_forward_pass(options: dict) -> None:
    """Put together again, what the heads hand on is what the attention of the block gives."""
    model = GPT(ModelConfig(**{**SMALL, **options})).init_weights(3).eval()
    ids = [3, 7, 1, 4, 7, 5]
    wanted: list[torch.Tensor] = []
    block = model.transformer.h[1]
    block.attn.c_proj.register_forward_pre_hook(lambda _, inputs: wanted.append(inputs[0]))
    model.logits(torch.tensor([ids]))
    heads = [inspect_head(model, ids, layer=1, head=h) for h in range(4)]
    torch.testing.assert_close(
        torch.cat([head.y for head in heads], 1), wanted[0][0], rtol=1e-4, atol=1e-6
    )
    for head in heads:
        torch.testing.assert_close(head.weights.sum(1), torch.ones(6))
        assert not head.weights[~head.mask].any()
    for layer, number in [(2, 0), (0, 4)]:
        with pytest.raises(UsageError, match="this model has"):
            inspect_head(model, ids, layer, number)
