"""The cache against the model without one: what it gives for each token, for prompts of any
lengths, in each format.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.generation.decoder import Decoder, pick_weights
from nanogpt_dist.generation.sampling import Settings, generate
from nanogpt_dist.model.gpt import GPT

CONFIG = ModelConfig(block_size=16, vocab_size=64, n_layer=3, n_head=4, n_embd=32, bias=True)
N_VOCAB = 61


@pytest.fixture(scope="module")
def model() -> GPT:
    made = GPT(CONFIG).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return made


@torch.no_grad()
def uncached(model: GPT, prompt: list[int], count: int) -> list[int]:
    """The likeliest ids after one prompt, each by a whole forward pass over the last block_size
    tokens.
    """
    ids = list(prompt)
    for _ in range(count):
        ids.append(
            int(model(torch.tensor([ids[-CONFIG.block_size :]]))[0][0, -1, :N_VOCAB].argmax())
        )
    return ids[len(prompt) :]


def greedy(decoder: Decoder, prompts: list[list[int]], count: int) -> list[list[int]]:
    """One row of ids per prompt."""
    columns: Iterator[torch.Tensor] = generate(
        decoder, prompts, Settings(max_new_tokens=count, temperature=0)
    )
    return torch.stack(list(columns), 1).tolist()


prompts = st.lists(
    st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=20), min_size=1, max_size=4
)


@given(prompts=prompts, count=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_greedy_ids_are_those_without_a_cache(
    model: GPT,
    prompts: list[list[int]],
    count: int,
) -> None:
    assert greedy(Decoder(model, N_VOCAB), prompts, count) == [
        uncached(model, prompt, count) for prompt in prompts
    ]


@given(prompts=prompts, follow=st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_logits_are_those_without_a_cache(
    model: GPT,
    prompts: list[list[int]],
    follow: list[int],
) -> None:
    decoder = Decoder(model, N_VOCAB)
    logits = decoder.start(prompts, len(follow) + 2)
    for i, chosen in enumerate([*follow, 0]):
        for row, prompt in zip(logits, prompts, strict=True):
            context = torch.tensor([[*prompt, *follow[:i]][-CONFIG.block_size :]])
            torch.testing.assert_close(
                row, model(context)[0][0, -1, :N_VOCAB], rtol=1e-4, atol=1e-4
            )
        logits = decoder.next(torch.full((len(prompts),), chosen))


@pytest.mark.parametrize(("weights", "at_most"), [("bfloat16", 0.05), ("int8", 0.05)])
def test_smaller_weights_give_nearly_the_same_logits(
    model: GPT,
    weights: str,
    at_most: float,
) -> None:
    exact, near = Decoder(model, N_VOCAB), Decoder(model, N_VOCAB, weights)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    expected, found = exact.start(rows, 9), near.start(rows, 9)
    for i in range(9):
        assert (found - expected).norm() / expected.norm() < at_most
        expected, found = exact.next(torch.tensor([i, i])), near.next(torch.tensor([i, i]))


def test_int8_without_torchs_kernel(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Decoder(model, N_VOCAB, "int8").start([[1, 2, 3]], 1)
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    found = Decoder(model, N_VOCAB, "int8").start([[1, 2, 3]], 1)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_bfloat16_without_torchs_packed_weights(
    model: GPT,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [[1, 2, 3], [4, 5]]
    expected = Decoder(model, N_VOCAB, "bfloat16").start(rows, 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    torch.testing.assert_close(
        Decoder(model, N_VOCAB, "bfloat16").start(rows, 1), expected, rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_many_rows_give_what_few_give(model: GPT, weights: str) -> None:
    """Products of many rows may go another way."""
    prompts = [[i, i + 1, i + 2, i + 3] for i in range(20)]
    together = Decoder(model, N_VOCAB, weights).start(prompts, 1)
    for logits, prompt in zip(together, prompts, strict=True):
        alone = Decoder(model, N_VOCAB, weights).start([prompt], 1)[0]
        assert (logits - alone).norm() / alone.norm() < 0.05


def test_a_decoder_starts_anew(model: GPT) -> None:
    decoder = Decoder(model, N_VOCAB)
    first = greedy(decoder, [[1, 2], [3, 4, 5]], 8)
    greedy(decoder, [[7] * 9], 3)
    assert greedy(decoder, [[1, 2], [3, 4, 5]], 8) == first


def test_weights_that_diverged_are_told() -> None:
    broken = GPT(CONFIG).init_weights(0).eval()
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(BadDataError, match="diverged"):
        Decoder(broken, N_VOCAB).start([[1]], 1)


def test_greedy_choices_are_exact_unless_told_otherwise() -> None:
    cpu = torch.device("cpu")
    assert pick_weights("auto", cpu, greedy=True) == "float32"
    assert pick_weights("int8", cpu, greedy=True) == "int8"
    assert pick_weights("auto", cpu, greedy=False) in ("float32", "bfloat16")
