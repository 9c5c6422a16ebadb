"""Sampling: the rules of choosing, ids that can be decoded, streams equal to samples."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.generation.sampling import (
    Settings,
    choose,
    encode_prompt,
    generate,
    generator_of,
    keep_top_p,
    sample,
    stream,
)
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from tests.nanogpt_dist.model.test_gpt import copied_from, hugging_face

BYTES = tokenizers.byte()
GENERATORS = [generator_of(0, i) for i in range(60)]


@pytest.fixture(scope="module")
def model() -> GPT:
    """Random weights, and a token table with rows that no tokenizer has: 320 for 257 ids."""
    config = load(
        "shakespeare-char-cpu", {"vocab_size": 320, "n_layer": 1, "n_embd": 32, "block_size": 16}
    )
    return GPT(config.architecture()).init_weights(3).eval()


rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30, unique=True)


@given(row=rows, k=st.integers(1, 40))
def test_top_k_draws_from_the_k_largest(row: list[float], k: int) -> None:
    logits = torch.tensor([row]).repeat(60, 1)
    drawn = choose(logits, Settings(temperature=30.0, top_k=k), GENERATORS[:60])
    largest = sorted(range(len(row)), key=lambda i: row[i])[-k:]
    assert set(drawn[:, 0].tolist()) <= set(largest)
    assert k > 3 or len(set(drawn[:, 0].tolist())) == min(k, len(row))


@given(row=rows, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_of_that_probability(row: list[float], p: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    probability = logits.softmax(-1)[0]
    kept = keep_top_p(logits, p)[0] > -torch.inf
    assert probability[kept].max() == probability.max()
    assert probability[kept].sum() >= p - 1e-9
    assert kept.sum() == 1 or probability[kept].sum() - probability[kept].min() < p + 1e-9
    assert not (~kept).any() or probability[~kept].max() <= probability[kept].min()


def test_top_p_zero_keeps_the_likeliest() -> None:
    assert choose(
        torch.tensor([[0.1, 3.0, 2.9]]), Settings(top_p=0.0), GENERATORS[:1]
    ).tolist() == [[1]]


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, 0.0, 1.0]])
    assert choose(logits, Settings(temperature=0), GENERATORS[:2]).tolist() == [[1], [0]]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits, Settings(temperature=1.0, top_k=None), [generator] * 20_000)
    shares = np.bincount(drawn[:, 0].numpy(), minlength=3) / 20_000
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.0, 5.0))
@settings(max_examples=10)
def test_no_id_beyond_the_tokenizers_and_no_context_beyond_the_models(
    model: GPT,
    seed: int,
    temperature: float,
) -> None:
    how = Settings(max_new_tokens=24, temperature=temperature, top_k=None, seed=seed)
    for new in generate(Decoder(model, BYTES.n_vocab), [[65] * 30], how):
        assert int(new) < BYTES.n_vocab


def test_samples_are_a_function_of_the_seed(model: GPT) -> None:
    how = Settings(max_new_tokens=16, seed=5)
    first, again = (sample(Decoder(model, 257), BYTES, ["def "], 3, how) for _ in range(2))
    assert first == again
    assert len({each.text for each in first}) == 3
    assert (
        sample(Decoder(model, 257), BYTES, ["def "], 3, Settings(max_new_tokens=16, seed=6))
        != first
    )


def test_a_sample_depends_on_nothing_that_is_drawn_with_it(model: GPT) -> None:
    how = Settings(max_new_tokens=12, temperature=1.5, stop=("e",), seed=7)
    decoder, prompts = Decoder(model, 257), ["a", "some longer prompt", "a"]
    many = sample(decoder, BYTES, prompts, 4, how)
    assert many[:4] == many[8:]
    assert many[:2] == sample(decoder, BYTES, ["a"], 2, how)
    assert many[4:5] == sample(decoder, BYTES, prompts[1:2], 1, how)
    pieces = list(stream(decoder, BYTES, prompts, 4, how))
    assert [number for number, _ in pieces] == sorted(number for number, _ in pieces)
    assert ["".join(piece for at, piece in pieces if at == n) for n in range(12)] == [
        each.text for each in many
    ]


def test_no_token_without_probability_is_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(60, 1)
    assert set(choose(logits, Settings(temperature=1.0), GENERATORS).flatten().tolist()) == {1, 3}


def test_greedy_ids_equal_those_of_transformers() -> None:
    config = ModelConfig(
        block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32, bias=True, gelu="tanh"
    )
    theirs = hugging_face(config)
    start = torch.tensor([encode_prompt("ab", BYTES)])
    how = Settings(max_new_tokens=24, temperature=0)
    ours = [
        int(new) for new in generate(Decoder(copied_from(theirs, config), 257), start.tolist(), how)
    ]
    expected = theirs.generate(
        start, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert ours == expected[0, 2:].tolist()


@given(seed=st.integers(0, 10_000), stop=st.sampled_from([(), ("e",), ("qu", "\n"), ("xyz",)]))
@settings(max_examples=25)
def test_a_stream_is_the_sample_in_pieces(model: GPT, seed: int, stop: tuple[str, ...]) -> None:
    how = Settings(max_new_tokens=40, temperature=1.3, stop=stop, seed=seed)
    decoder = Decoder(model, BYTES.n_vocab)
    [whole] = sample(decoder, BYTES, ["a"], 1, how)
    assert "".join(piece for _, piece in stream(decoder, BYTES, ["a"], 1, how)) == whole.text
    assert not any(text in whole.text for text in stop)
    assert whole.text.startswith(BYTES.decode(whole.ids).rstrip("�"))


def test_a_sample_ends_before_end_of_text(model: GPT) -> None:
    class Ending(Decoder):
        """Says A, A, A and then end-of-text."""

        def next(self, ids: torch.Tensor) -> torch.Tensor:
            super().next(ids)
            return F.one_hot(torch.tensor([256 if self.lengths[0] > 4 else 65]), 257) * 99.0

        def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> torch.Tensor:
            return (
                super().start(prompts, max_new_tokens) * 0 + F.one_hot(torch.tensor(65), 257) * 99.0
            )

    ending = Ending(model, 257)
    [found] = sample(ending, BYTES, ["ab"], 1, Settings())
    assert (found.text, found.ids) == ("AAA", [65, 65, 65])
    assert "".join(piece for _, piece in stream(ending, BYTES, ["ab"], 1, Settings())) == "AAA"


def test_an_empty_prompt_is_end_of_text_or_a_line_break() -> None:
    assert encode_prompt("", BYTES) == [256]
    assert encode_prompt("", tokenizers.char("\nab")) == [0]
