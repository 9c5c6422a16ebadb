"""Ids that a model has no row for end in a line, wherever they come from."""

import json
from pathlib import Path

import pytest
import torch

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.evaluation import report
from nanogpt_dist.evaluation.report import LoadedModel
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.generation import sampling
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage.run_folder import to_json
from nanogpt_dist.tokenizer import Tokenizer
from tests.nanogpt_dist.interop.models import SIZES
from tests.nanogpt_dist.small import ONE


def loaded(rows: int, tokenizer: Tokenizer | None) -> LoadedModel:
    config = resolve({**SIZES, "vocab_size": rows})
    return LoadedModel(
        "a model", GPT(config.architecture()).init_weights(0).eval(), config, tokenizer, None
    )


def test_an_id_without_a_row_is_told(tmp_path: Path) -> None:
    few = loaded(90, tokenizers.byte())
    text = tmp_path / "text.txt"
    text.write_text("abc xyz", encoding="utf-8")
    with pytest.raises(BadDataError, match="gives id 256, the model has 90 rows"):
        jsonl_tasks.text(text, few.scorer(ONE, 4, "float32"))
    decoder = Decoder(few.model, 256)
    with pytest.raises(BadDataError, match="gives id 122, the model has 90 rows"):
        sampling.sample(decoder, tokenizers.byte(), ["xyz"], 1, sampling.Settings(max_new_tokens=2))
    assert sampling.sample(
        decoder, tokenizers.byte(), ["ABC"], 1, sampling.Settings(max_new_tokens=2)
    )


def test_data_with_more_ids_than_the_model_has_rows_is_refused(corpus: Path) -> None:
    data = DataFolder.open(corpus)
    for tokenizer in (None, data.tokenizer):
        with pytest.raises(BadDataError, match=r"has ids up to \d+, a model 20 rows"):
            report.check_tokenizer(loaded(20, tokenizer), data)
        report.check_tokenizer(loaded(data.tokenizer.n_vocab, tokenizer), data)


def test_json_has_null_for_what_is_not_finite_at_any_depth() -> None:
    content = {"a": float("nan"), "b": {"c": [1.5, float("inf"), {"d": (-float("inf"), 2)}]}}
    assert json.loads(to_json(content)) == {"a": None, "b": {"c": [1.5, None, {"d": [None, 2]}]}}


@pytest.mark.parametrize(("text", "begins"), [("ACGT", "A"), ("a\nb", "\n"), ("", "\n")])
def test_a_sample_begins_with_text_that_the_tokenizer_has(text: str, begins: str) -> None:
    tokenizer = tokenizers.char([text]) if text else tokenizers.byte()
    assert sampling.first_text(tokenizer) == begins
    model = loaded(tokenizer.n_vocab, tokenizer).model
    torch.manual_seed(0)
    assert sampling.encode_prompt("", tokenizer)
    for prompt in ("", begins):
        [found] = sampling.sample(
            Decoder(model, tokenizer.n_vocab), tokenizer, [prompt], 1, sampling.Settings(3)
        )
        assert found.prompt == prompt
